// Generator drives one mail server with kept connections and says how it answered, as one JSON object on stdout.
//
// `generator sink` is something else: an OTLP collector that keeps nothing. Otherwise there are four modes:
//
//	load   N connections send COUNT messages in all, as fast as each is answered
//	paced  the same at a fixed rate over all connections; latency then counts from when a message was due
//	idle   paced, and for every recipient an IMAP session in IDLE that fetches each body as it is told of it
//	hold   N IMAP sessions in IDLE, until stdin is closed
//
// It is written for servers that demand TLS and AUTH, which Postfix's smtp-source cannot do, and stays plain for those
// that do not, so that one generator drives both sides of a comparison.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// account is one sender or reader. Without a password there is no AUTH.
type account struct {
	Address  string `json:"address"`
	Password string `json:"password"`
}

// plan is what a run does, from the flags.
type plan struct {
	mode        string
	smtp, imap  string
	tls         *tls.Config
	senders     []account
	recipients  []account
	connections int
	count       int64
	size        int
	rate        float64
	trace       bool
	workflow    bool
}

// result is what a run says. Latencies are in milliseconds.
type result struct {
	Accepted  int64              `json:"accepted"`
	Refused   int64              `json:"refused"`
	Seconds   float64            `json:"seconds"`
	PerSecond float64            `json:"per_second"`
	FirstAt   float64            `json:"first_at"` // Unix seconds of the first MAIL
	LastAt    float64            `json:"last_at"`  // Unix seconds of the last 250
	Submit    map[string]float64 `json:"submit_ms"`
	Exists    map[string]float64 `json:"exists_ms,omitempty"`
	Body      map[string]float64 `json:"body_ms,omitempty"`
	Read      int64              `json:"read,omitempty"`
	Error     string             `json:"error,omitempty"`
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "sink" {
		fmt.Fprintln(os.Stderr, "generator:", sink())
		os.Exit(1)
	}
	p, err := parse()
	if err != nil {
		fmt.Fprintln(os.Stderr, "generator:", err)
		os.Exit(2)
	}
	if p.mode == "hold" {
		if err := hold(p); err != nil {
			fmt.Fprintln(os.Stderr, "generator:", err)
			os.Exit(1)
		}
		return
	}
	r := run(p)
	json.NewEncoder(os.Stdout).Encode(r)
	if r.Error != "" {
		os.Exit(1)
	}
}

func parse() (*plan, error) {
	p := &plan{}
	var ca, senders, recipients string
	flag.StringVar(&p.mode, "mode", "load", "load, paced, idle or hold")
	flag.StringVar(&p.smtp, "smtp", "127.0.0.1:2465", "where to submit")
	flag.StringVar(&p.imap, "imap", "127.0.0.1:2993", "where to read (idle)")
	flag.StringVar(&ca, "ca", "", "trust this CA and speak TLS 1.3; without it everything is in the clear")
	flag.StringVar(&senders, "senders", "", "file: JSON array of {address, password}")
	flag.StringVar(&recipients, "recipients", "", "file: JSON array of {address, password}")
	flag.IntVar(&p.connections, "connections", 40, "kept connections")
	flag.Int64Var(&p.count, "count", 10000, "messages in all")
	flag.IntVar(&p.size, "size", 2048, "octets of a message, headers included")
	flag.Float64Var(&p.rate, "rate", 100, "messages a second (paced, idle)")
	flag.BoolVar(&p.trace, "traceparent", false, "give every message a traceparent of its own")
	flag.BoolVar(&p.workflow, "workflow", false, "give every message an X-Workflow-ID, one per sender")
	flag.Parse()
	for _, file := range []struct {
		path string
		into *[]account
	}{{senders, &p.senders}, {recipients, &p.recipients}} {
		raw, err := os.ReadFile(file.path)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, file.into); err != nil {
			return nil, fmt.Errorf("%s: %w", file.path, err)
		}
		if len(*file.into) == 0 {
			return nil, fmt.Errorf("%s is empty", file.path)
		}
	}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return nil, err
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate", ca)
		}
		p.tls = &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	}
	return p, nil
}

// run opens all connections first, so that what is measured is mail and not greetings.
func run(p *plan) *result {
	r := &result{}
	var watch *watchers
	if p.mode == "idle" {
		var err error
		if watch, err = startWatchers(p); err != nil {
			r.Error = err.Error()
			return r
		}
	}
	clients := make([]*submitter, p.connections)
	var opening sync.WaitGroup
	errs := make(chan error, p.connections*2)
	gate := make(chan struct{}, 8) // a log-in costs the server a hash: not all at once
	for i := range clients {
		opening.Add(1)
		go func() {
			defer opening.Done()
			gate <- struct{}{}
			defer func() { <-gate }()
			c, err := dialSubmitter(p, p.senders[i%len(p.senders)])
			if err != nil {
				errs <- err
				return
			}
			clients[i] = c
		}()
	}
	opening.Wait()
	select {
	case err := <-errs:
		r.Error = err.Error()
		return r
	default:
	}

	var next, refused atomic.Int64
	latencies := make([][]float64, p.connections)
	start := time.Now()
	var working sync.WaitGroup
	for i, c := range clients {
		working.Add(1)
		go func() {
			defer working.Done()
			for {
				n := next.Add(1) - 1
				if n >= p.count {
					return
				}
				began := time.Now()
				if p.mode != "load" {
					due := start.Add(time.Duration(float64(n) / p.rate * float64(time.Second)))
					time.Sleep(time.Until(due))
					began = due // a late generator is the server's lateness: no coordinated omission
				}
				to := p.recipients[n%int64(len(p.recipients))]
				ok, err := c.send(n, to, began)
				if err != nil {
					errs <- err
					return
				}
				if !ok {
					refused.Add(1)
				}
				latencies[i] = append(latencies[i], time.Since(began).Seconds()*1000)
			}
		}()
	}
	working.Wait()
	end := time.Now()
	for _, c := range clients {
		c.quit()
	}
	var all []float64
	for _, some := range latencies {
		all = append(all, some...)
	}
	r.Refused = refused.Load()
	r.Accepted = int64(len(all)) - r.Refused
	r.Seconds = end.Sub(start).Seconds()
	r.PerSecond = float64(r.Accepted) / r.Seconds
	r.FirstAt = float64(start.UnixNano()) / 1e9
	r.LastAt = float64(end.UnixNano()) / 1e9
	r.Submit = percentiles(all)
	if watch != nil {
		exists, body, err := watch.finish(r.Accepted, 10*time.Second)
		r.Exists, r.Body, r.Read = percentiles(exists), percentiles(body), int64(len(body))
		if err != nil {
			r.Error = err.Error()
		}
	}
	select {
	case err := <-errs:
		r.Error = err.Error()
	default:
	}
	return r
}

func percentiles(values []float64) map[string]float64 {
	if len(values) == 0 {
		return nil
	}
	sort.Float64s(values)
	at := func(q float64) float64 {
		i := int(q * float64(len(values)))
		return values[min(i, len(values)-1)]
	}
	return map[string]float64{"p50": at(0.50), "p90": at(0.90), "p99": at(0.99), "max": values[len(values)-1]}
}
