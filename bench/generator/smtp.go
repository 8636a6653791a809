package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
	"time"
)

// A stalled server ends a run instead of hanging it.
const patience = 60 * time.Second

// submitter is one kept SMTP connection that sends one message after the other.
type submitter struct {
	conn      net.Conn
	in        *bufio.Reader
	out       []byte
	from      string
	pipelines bool
	p         *plan
}

func dial(address string, config *tls.Config) (net.Conn, error) {
	d := &net.Dialer{Timeout: patience}
	if config == nil {
		return d.Dial("tcp", address)
	}
	return tls.DialWithDialer(d, "tcp", address, config)
}

func dialSubmitter(p *plan, who account) (*submitter, error) {
	conn, err := dial(p.smtp, p.tls)
	if err != nil {
		return nil, err
	}
	c := &submitter{conn: conn, in: bufio.NewReaderSize(conn, 8192), from: who.Address, p: p}
	if _, err := c.expect(220); err != nil {
		return nil, err
	}
	offered, err := c.ask("EHLO bench.localhost", 250)
	if err != nil {
		return nil, err
	}
	c.pipelines = strings.Contains(offered, "PIPELINING")
	if who.Password != "" {
		secret := base64.StdEncoding.EncodeToString([]byte("\x00" + who.Address + "\x00" + who.Password))
		if _, err := c.ask("AUTH PLAIN "+secret, 235); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// send submits one message; false when the server refused it for good or for now.
func (c *submitter) send(n int64, to account, due time.Time) (bool, error) {
	mail, rcpt := "MAIL FROM:<"+c.from+">", "RCPT TO:<"+to.Address+">"
	if c.pipelines {
		// MAIL, RCPT and DATA in one segment (RFC 2920 §3.1); the message waits for the 354.
		if err := c.write(mail + "\r\n" + rcpt + "\r\nDATA\r\n"); err != nil {
			return false, err
		}
	}
	for _, step := range []struct {
		command string
		code    int
	}{{mail, 250}, {rcpt, 250}, {"DATA", 354}} {
		if !c.pipelines {
			if err := c.write(step.command + "\r\n"); err != nil {
				return false, err
			}
		}
		if _, err := c.expect(step.code); err != nil {
			return false, fmt.Errorf("%s: %w", step.command, err)
		}
	}
	c.compose(n, to.Address, due)
	if err := c.flush(); err != nil {
		return false, err
	}
	code, _, err := c.reply()
	return code == 250, err
}

// compose fills the buffer with a message of the planned size, final dot included.
func (c *submitter) compose(n int64, to string, due time.Time) {
	var random [24]byte
	rand.Read(random[:])
	b := bytes.NewBuffer(c.out[:0])
	fmt.Fprintf(b, "From: %s\r\nTo: %s\r\nSubject: bench %d\r\n", c.from, to, n)
	fmt.Fprintf(b, "Date: %s\r\n", due.UTC().Format("Mon, 02 Jan 2006 15:04:05 +0000"))
	fmt.Fprintf(b, "Message-ID: <%x.%d@bench.localhost>\r\n", random[:8], n)
	fmt.Fprintf(b, "X-Due: %d\r\n", due.UnixNano())
	if c.p.trace {
		fmt.Fprintf(b, "traceparent: 00-%x-%x-01\r\n", random[:16], random[16:])
	}
	if c.p.workflow {
		// One workflow for every few messages: a workflow of ten thousand is nobody's conversation.
		fmt.Fprintf(b, "X-Workflow-ID: bench-%x\r\n", random[8:12])
	}
	b.WriteString("Content-Type: application/json\r\n\r\n{\"n\": ")
	fmt.Fprintf(b, "%d, \"text\": \"%x\",\r\n\"rest\": \"", n, random)
	const line = "Every message is a trace and every event is provable, and this is filling. \r\n"
	for b.Len()+len(line) < c.p.size {
		b.WriteString(line)
	}
	b.WriteString("\"}\r\n.\r\n")
	c.out = b.Bytes()
}

func (c *submitter) write(text string) error {
	c.out = append(c.out[:0], text...)
	return c.flush()
}

func (c *submitter) flush() error {
	c.conn.SetDeadline(time.Now().Add(patience))
	_, err := c.conn.Write(c.out)
	return err
}

func (c *submitter) ask(command string, code int) (string, error) {
	if err := c.write(command + "\r\n"); err != nil {
		return "", err
	}
	return c.expect(code)
}

func (c *submitter) expect(code int) (string, error) {
	got, text, err := c.reply()
	if err == nil && got != code {
		err = fmt.Errorf("wanted %d, got %d %s", code, got, strings.TrimSpace(text))
	}
	return text, err
}

// reply reads one reply, however many lines it has.
func (c *submitter) reply() (int, string, error) {
	var text strings.Builder
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, text.String(), err
		}
		if len(line) < 5 {
			return 0, line, fmt.Errorf("short reply %q", line)
		}
		text.WriteString(line[4:])
		if line[3] == ' ' {
			code := 0
			_, err := fmt.Sscanf(line[:3], "%d", &code)
			return code, text.String(), err
		}
	}
}

func (c *submitter) quit() {
	c.write("QUIT\r\n")
	c.reply()
	c.conn.Close()
}
