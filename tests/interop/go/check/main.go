// Check is an audit log's second opinion: everything in it that verifies was written by others.
//
//	check log URL VKEYFILE             the whole log at file:// or https://, by Tessera's fsck
//	check note NOTEFILE LOG [WITNESS]  a signed checkpoint, by golang.org/x/mod/sumdb/note
//	check proof PROOFFILE LEAFFILE LOG an inclusion proof, by transparency-dev/merkle
//	check sign SKEY TEXTFILE           a note signed by golang.org/x/mod/sumdb/note, on standard output
//
// LOG and WITNESS are verifier keys. BEARER and CAFILE in the environment are for https.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/transparency-dev/formats/log"
	f_note "github.com/transparency-dev/formats/note"
	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

func main() {
	args := os.Args[1:]
	if err := run(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "log":
		return checkLog(args[1], args[2])
	case len(args) >= 3 && args[0] == "note":
		return checkNote(args[1], args[2], args[3:])
	case len(args) == 4 && args[0] == "proof":
		return checkProof(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "sign":
		return sign(args[1], args[2])
	}
	return fmt.Errorf("see the top of main.go for what to give")
}

func checkLog(where, keyFile string) error {
	keys, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(strings.Fields(string(keys))[0])
	if err != nil {
		return err
	}
	source, err := fetcher(where)
	if err != nil {
		return err
	}
	return fsck.New(verifier.Name(), verifier, source, hashes, fsck.Opts{N: 2}).Check(context.Background())
}

func fetcher(where string) (fsck.Fetcher, error) {
	root, err := url.Parse(where)
	if err != nil {
		return nil, err
	}
	if root.Scheme == "file" {
		return &client.FileFetcher{Root: root.Path}, nil
	}
	pem, err := os.ReadFile(os.Getenv("CAFILE"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	trusting := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	found, err := client.NewHTTPFetcher(root, trusting)
	if err != nil {
		return nil, err
	}
	found.SetAuthorizationHeader("Bearer " + os.Getenv("BEARER"))
	return found, nil
}

func hashes(bundle []byte) ([][]byte, error) {
	entries := &api.EntryBundle{}
	if err := entries.UnmarshalText(bundle); err != nil {
		return nil, err
	}
	var found [][]byte
	for _, entry := range entries.Entries {
		found = append(found, rfc6962.DefaultHasher.HashLeaf(entry))
	}
	return found, nil
}

func checkNote(file, logKey string, witnesses []string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(logKey)
	if err != nil {
		return err
	}
	var others []note.Verifier
	for _, key := range witnesses {
		witness, err := f_note.NewVerifierForCosignatureV1(key)
		if err != nil {
			return err
		}
		others = append(others, witness)
	}
	checkpoint, _, signed, err := log.ParseCheckpoint(text, verifier.Name(), verifier, others...)
	if err != nil {
		return err
	}
	if len(signed.Sigs) != 1+len(others) {
		return fmt.Errorf("%d signatures hold, not %d", len(signed.Sigs), 1+len(others))
	}
	fmt.Println(checkpoint.Size)
	return nil
}

func checkProof(file, leafFile, logKey string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	leaf, err := os.ReadFile(leafFile)
	if err != nil {
		return err
	}
	verifier, err := note.NewVerifier(logKey)
	if err != nil {
		return err
	}
	head, signed, _ := bytes.Cut(text, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
		return fmt.Errorf("not a tlog-proof")
	}
	index, err := strconv.ParseUint(strings.TrimPrefix(lines[1], "index "), 10, 64)
	if err != nil {
		return err
	}
	var path [][]byte
	for _, line := range lines[2:] {
		hash, err := base64.StdEncoding.DecodeString(line)
		if err != nil {
			return err
		}
		path = append(path, hash)
	}
	checkpoint, _, _, err := log.ParseCheckpoint(signed, verifier.Name(), verifier)
	if err != nil {
		return err
	}
	hasher := rfc6962.DefaultHasher
	return proof.VerifyInclusion(hasher, index, checkpoint.Size, hasher.HashLeaf(leaf), path, checkpoint.Hash)
}

func sign(skey, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return err
	}
	signed, err := note.Sign(&note.Note{Text: string(text)}, signer)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(signed)
	return err
}
