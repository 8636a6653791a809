package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
)

// sink takes OTLP over HTTP and throws it away: the cheapest collector there can be. It prints its port, then serves
// until killed. `GET /` says how many requests and octets came.
func sink() error {
	var requests, octets atomic.Int64
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fmt.Fprintf(w, "{\"requests\": %d, \"octets\": %d}\n", requests.Load(), octets.Load())
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		requests.Add(1)
		octets.Add(n)
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
}
