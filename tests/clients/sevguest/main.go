// SPDX-License-Identifier: Apache-2.0

// Command sevguest judges much evidence with google/go-sev-guest, in one process. It reads reports
// with their certificate tables behind them from standard input, each after its length in four
// bytes, and prints a line for each: "accepted", or "refused" and why.
//
//	sevguest RFC3339-TIME
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("usage: sevguest RFC3339-TIME")
	}
	now, err := time.Parse(time.RFC3339, args[0])
	if err != nil {
		return err
	}
	in, out := bufio.NewReader(os.Stdin), bufio.NewWriter(os.Stdout)
	for {
		var size uint32
		if err := binary.Read(in, binary.BigEndian, &size); err == io.EOF {
			return out.Flush()
		} else if err != nil {
			return err
		}
		evidence := make([]byte, size)
		if _, err := io.ReadFull(in, evidence); err != nil {
			return err
		}
		if err := judge(evidence, now); err != nil {
			fmt.Fprintf(out, "refused %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Fprintln(out, "accepted")
		}
	}
}

func judge(evidence []byte, now time.Time) error {
	if len(evidence) < abi.ReportSize {
		return fmt.Errorf("%d bytes are no report", len(evidence))
	}
	report, err := abi.ReportToProto(evidence[:abi.ReportSize])
	if err != nil {
		return err
	}
	certificates := new(abi.CertTable)
	if err := certificates.Unmarshal(evidence[abi.ReportSize:]); err != nil {
		return err
	}
	attestation := &spb.Attestation{Report: report, CertificateChain: certificates.Proto()}
	options := verify.DefaultOptions()
	options.DisableCertFetching = true
	options.Now = now
	return verify.SnpAttestation(attestation, options)
}
