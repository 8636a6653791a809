package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
)

// hold opens p.connections IMAP sessions that wait in IDLE, says `held`, and keeps them until stdin is closed.
func hold(p *plan) error {
	var working sync.WaitGroup
	var lock sync.Mutex
	var failed error
	sessions := make(chan int)
	for range 16 { // a log-in costs the server a hash: not all at once
		working.Add(1)
		go func() {
			defer working.Done()
			for n := range sessions {
				if err := idle(p, p.recipients[n%len(p.recipients)]); err != nil {
					lock.Lock()
					failed = err
					lock.Unlock()
				}
			}
		}()
	}
	for n := range p.connections {
		sessions <- n
	}
	close(sessions)
	working.Wait()
	if failed != nil {
		return failed
	}
	fmt.Println("held")
	io.Copy(io.Discard, os.Stdin)
	return nil
}

var held []*watcher // so that none is collected and closed
var holding sync.Mutex

func idle(p *plan, who account) error {
	conn, err := dial(p.imap, p.tls)
	if err != nil {
		return err
	}
	one := &watcher{conn: conn, in: bufio.NewReaderSize(conn, 512)}
	if _, err := one.line(); err != nil {
		return err
	}
	if err := one.ask(fmt.Sprintf("LOGIN %q %q", who.Address, who.Password)); err != nil {
		return err
	}
	if err := one.ask("SELECT INBOX"); err != nil {
		return err
	}
	if err := one.write("i IDLE\r\n"); err != nil {
		return err
	}
	for {
		line, err := one.line()
		if err != nil || strings.HasPrefix(line, "+") {
			holding.Lock()
			held = append(held, one)
			holding.Unlock()
			return err
		}
	}
}
