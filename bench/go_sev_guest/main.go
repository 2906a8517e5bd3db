// SPDX-License-Identifier: Apache-2.0

// Command verify makes go-sev-guest verify the same evidence COUNT times:
//
//	verify whole|known EVIDENCE BUNDLE COUNT
//
// "whole" parses report and table each time and verifies the chain, whose ASK and ARK it
// has parsed once. "known" parses the VCEK once, and verifies only the report's signature.
package main

import (
	"crypto/x509"
	"log"
	"os"
	"strconv"

	"github.com/google/go-sev-guest/abi"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"
)

func main() {
	evidence, err := os.ReadFile(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	bundle, err := os.ReadFile(os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	count, err := strconv.Atoi(os.Args[4])
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
	whole := func() {
		report, err := abi.ReportToProto(evidence[:abi.ReportSize])
		if err != nil {
			log.Fatal(err)
		}
		attestation := &spb.Attestation{Report: report, CertificateChain: chain(evidence)}
		if err := verify.SnpAttestation(attestation, options); err != nil {
			log.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(chain(evidence).VcekCert)
	if err != nil {
		log.Fatal(err)
	}
	known := func() {
		if err := verify.SnpReportSignature(evidence[:abi.ReportSize], leaf); err != nil {
			log.Fatal(err)
		}
	}
	once := known
	if os.Args[1] == "whole" {
		once = whole
	}
	for range count {
		once()
	}
}

func chain(evidence []byte) *spb.CertificateChain {
	table := new(abi.CertTable)
	if err := table.Unmarshal(evidence[abi.ReportSize:]); err != nil {
		log.Fatal(err)
	}
	return table.Proto()
}
