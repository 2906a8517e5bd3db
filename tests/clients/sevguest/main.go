// SPDX-License-Identifier: Apache-2.0

// Command sevguest verifies many reports with google/go-sev-guest, in one process:
//
//	sevguest RFC3339-TIME
//
// Standard input has, for each report, a length in four bytes (big-endian), the report, and its
// certificate table; the length is that of both. The command prints a line for each report:
// "accepted", or "refused" and the reason.
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
		return fmt.Errorf("%d bytes are too few for a report", len(evidence))
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
