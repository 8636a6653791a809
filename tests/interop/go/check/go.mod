// No go.sum beside it: the test resolves these from the module proxy, checked against the public checksum database.
module check

go 1.24

require (
	github.com/transparency-dev/formats v0.0.0-20251017110053-404c0d5b696c
	github.com/transparency-dev/merkle v0.0.2
	github.com/transparency-dev/tessera v1.0.4
	golang.org/x/mod v0.42.0
)
