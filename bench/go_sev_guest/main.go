// SPDX-License-Identifier: Apache-2.0

// Command verify times go-sev-guest over one piece of evidence, again and again.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

func main() {
	evidence, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	bundle, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	count, err := strconv.Atoi(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	root := trust.AMDRootCertsProduct("Milan")
	if err := root.FromKDSCertBytes(bundle); err != nil {
		log.Fatal(err)
	}
	options := &verify.Options{
		TrustedRoots:        map[string][]*trust.AMDRootCerts{"Milan": {root}},
		DisableCertFetching: true,
	}
	once := func() {
		report, err := abi.ReportToProto(evidence[:abi.ReportSize])
		if err != nil {
			log.Fatal(err)
		}
		table := new(abi.CertTable)
		if err := table.Unmarshal(evidence[abi.ReportSize:]); err != nil {
			log.Fatal(err)
		}
		attestation := &spb.Attestation{Report: report, CertificateChain: table.Proto()}
		if err := verify.SnpAttestation(attestation, options); err != nil {
			log.Fatal(err)
		}
	}
	once()
	start := time.Now()
	for range count {
		once()
	}
	fmt.Println(time.Since(start).Seconds() / float64(count))
}
