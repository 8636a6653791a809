package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// watchers are IMAP sessions in IDLE, one per recipient. Each, when told EXISTS, leaves IDLE, fetches what is new with
// its body, and goes back: what an agent's loop does.
type watchers struct {
	all  []*watcher
	done sync.WaitGroup
	lock sync.Mutex
	// milliseconds since a message was due: until EXISTS was heard, until its body was here
	exists, body []float64
	err          error
	enough       chan struct{}
	want         int64
}

type watcher struct {
	conn net.Conn
	in   *bufio.Reader
	seen int // messages of the mailbox that were fetched
	// when each message after those was first heard of
	heard []time.Time
	tag   int
	w     *watchers
}

func startWatchers(p *plan) (*watchers, error) {
	w := &watchers{enough: make(chan struct{}), want: -1}
	for _, who := range p.recipients {
		conn, err := dial(p.imap, p.tls)
		if err != nil {
			return nil, err
		}
		one := &watcher{conn: conn, in: bufio.NewReaderSize(conn, 65536), w: w}
		if _, err := one.line(); err != nil {
			return nil, err
		}
		if err := one.ask(fmt.Sprintf("LOGIN %q %q", who.Address, who.Password)); err != nil {
			return nil, err
		}
		if err := one.ask("SELECT INBOX"); err != nil {
			return nil, err
		}
		one.seen, one.heard = len(one.heard), nil
		w.all = append(w.all, one)
	}
	for _, one := range w.all {
		ready := make(chan struct{})
		w.done.Add(1)
		go func() {
			defer w.done.Done()
			one.watch(ready)
		}()
		<-ready
	}
	return w, nil
}

// finish waits until `want` messages were read, or the time is up.
func (w *watchers) finish(want int64, limit time.Duration) (exists, body []float64, err error) {
	w.lock.Lock()
	w.want = want
	if int64(len(w.body)) >= want {
		w.reached()
	}
	w.lock.Unlock()
	select {
	case <-w.enough:
	case <-time.After(limit):
		err = fmt.Errorf("not all messages were read in %s", limit)
	}
	for _, one := range w.all {
		one.conn.Close()
	}
	w.done.Wait()
	if err == nil {
		err = w.err
	}
	return w.exists, w.body, err
}

// failed notes an error, unless all was read by then and the connections were closed for that.
func (w *watchers) failed(err error) {
	select {
	case <-w.enough:
	default:
		w.lock.Lock()
		w.err = err
		w.lock.Unlock()
	}
}

func (w *watchers) reached() {
	select {
	case <-w.enough:
	default:
		close(w.enough)
	}
}

func (o *watcher) watch(ready chan struct{}) {
	for {
		o.tag++
		tag := fmt.Sprintf("i%d", o.tag)
		if err := o.write(tag + " IDLE\r\n"); err != nil {
			return
		}
		for idling := false; !idling || len(o.heard) == 0; {
			line, err := o.line()
			if err != nil {
				return
			}
			if strings.HasPrefix(line, "+") {
				idling = true
				if ready != nil {
					close(ready)
					ready = nil
				}
			}
		}
		if err := o.write("DONE\r\n"); err != nil {
			return
		}
		if err := o.until(tag); err != nil {
			return
		}
		if err := o.fetch(); err != nil {
			o.w.failed(err)
			return
		}
	}
}

// fetch reads bodies and notes how long after they were due EXISTS and they themselves came.
func (o *watcher) fetch() error {
	o.tag++
	tag := fmt.Sprintf("f%d", o.tag)
	first, last := o.seen+1, o.seen+len(o.heard)
	if err := o.write(fmt.Sprintf("%s FETCH %d:%d (UID BODY.PEEK[])\r\n", tag, first, last)); err != nil {
		return err
	}
	for {
		line, err := o.line()
		if err != nil {
			return err
		}
		if strings.HasPrefix(line, tag+" ") {
			if !strings.HasPrefix(line, tag+" OK") {
				return fmt.Errorf("FETCH: %s", line)
			}
			return nil
		}
		open := strings.LastIndexByte(line, '{')
		if open < 0 || !strings.HasSuffix(line, "}") {
			continue
		}
		size, err := strconv.Atoi(line[open+1 : len(line)-1])
		if err != nil {
			return err
		}
		body := make([]byte, size)
		if _, err := io.ReadFull(o.in, body); err != nil {
			return err
		}
		due, err := dueOf(string(body))
		if err != nil {
			return err
		}
		told := o.heard[0]
		o.seen, o.heard = o.seen+1, o.heard[1:]
		o.w.lock.Lock()
		o.w.exists = append(o.w.exists, told.Sub(due).Seconds()*1000)
		o.w.body = append(o.w.body, time.Since(due).Seconds()*1000)
		if o.w.want >= 0 && int64(len(o.w.body)) >= o.w.want {
			o.w.reached()
		}
		o.w.lock.Unlock()
	}
}

func dueOf(message string) (time.Time, error) {
	_, rest, found := strings.Cut(message, "\r\nX-Due: ")
	if !found {
		return time.Time{}, fmt.Errorf("a message without X-Due")
	}
	value, _, _ := strings.Cut(rest, "\r\n")
	ns, err := strconv.ParseInt(value, 10, 64)
	return time.Unix(0, ns), err
}

func existsIn(line string) (int, bool) {
	fields := strings.Fields(line)
	if len(fields) == 3 && fields[0] == "*" && fields[2] == "EXISTS" {
		n, err := strconv.Atoi(fields[1])
		return n, err == nil
	}
	return 0, false
}

func (o *watcher) ask(command string) error {
	o.tag++
	tag := fmt.Sprintf("a%d", o.tag)
	if err := o.write(tag + " " + command + "\r\n"); err != nil {
		return err
	}
	return o.until(tag)
}

func (o *watcher) until(tag string) error {
	for {
		line, err := o.line()
		if err != nil {
			return err
		}
		if rest, found := strings.CutPrefix(line, tag+" "); found {
			if !strings.HasPrefix(rest, "OK") {
				return fmt.Errorf("refused: %s", rest)
			}
			return nil
		}
	}
}

// line reads one line and takes note of EXISTS, which may come at any time.
func (o *watcher) line() (string, error) {
	raw, err := o.in.ReadString('\n')
	line := strings.TrimRight(raw, "\r\n")
	if n, ok := existsIn(line); ok {
		for o.seen+len(o.heard) < n {
			o.heard = append(o.heard, time.Now())
		}
	}
	return line, err
}

func (o *watcher) write(text string) error {
	_, err := o.conn.Write([]byte(text))
	return err
}
