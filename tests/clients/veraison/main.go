// SPDX-License-Identifier: Apache-2.0

// Command veraison uses Veraison's libraries to read what snpcerts writes:
//
//	veraison ear KEY.pem TOKEN    verify an EAR, print its claims as JSON
//	veraison corim FILE           read and validate a CoRIM, print it as JSON
package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"github.com/fxamacker/cbor/v2"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/veraison/corim/comid"
	"github.com/veraison/corim/corim"
	"github.com/veraison/ear"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "ear":
		return readEar(args[1], args[2])
	case len(args) == 2 && args[0] == "corim":
		return readCorim(args[1])
	}
	return errors.New("usage: veraison ear KEY.pem TOKEN | veraison corim FILE")
}

func readEar(keyFile, tokenFile string) error {
	text, err := os.ReadFile(keyFile)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return errors.New("no PEM")
	}
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	var result ear.AttestationResult
	if err := result.Verify(bytes.TrimSpace(token), jwa.ES256(), key); err != nil {
		return err
	}
	out, err := json.Marshal(result)
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	return nil
}

func readCorim(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	profile, data, err := withoutProfile(data)
	if err != nil {
		return err
	}
	var unsigned corim.UnsignedCorim
	if err := unsigned.FromCBOR(data); err != nil {
		return err
	}
	if err := unsigned.Valid(); err != nil {
		return err
	}
	comids := []json.RawMessage{}
	for _, tag := range unsigned.Tags {
		var module comid.Comid
		if err := module.FromCBOR(tag); err != nil {
			return err
		}
		if err := module.Valid(); err != nil {
			return err
		}
		out, err := module.ToJSON()
		if err != nil {
			return err
		}
		comids = append(comids, out)
	}
	out, err := json.Marshal(map[string]any{"profile": profile, "comids": comids})
	if err != nil {
		return err
	}
	fmt.Println(string(out))
	return nil
}

// withoutProfile checks what the draft has changed since corim 1.1.2 was released: tag 501 around
// the CoRIM, one profile instead of a list, and tag 506 around each CoMID instead of inside it. It
// returns the profile, and the CoRIM without tag 501 and profile, as corim 1.1.2 reads it.
func withoutProfile(data []byte) (string, []byte, error) {
	if !bytes.HasPrefix(data, []byte{0xd9, 0x01, 0xf5}) {
		return "", nil, errors.New("no tag 501")
	}
	var parts map[int]cbor.RawMessage
	if err := cbor.Unmarshal(data[3:], &parts); err != nil {
		return "", nil, err
	}
	var profile cbor.Tag
	if err := cbor.Unmarshal(parts[3], &profile); err != nil {
		return "", nil, err
	}
	text, ok := profile.Content.(string)
	if profile.Number != 32 || !ok {
		return "", nil, errors.New("the profile is not a URI")
	}
	var tags []cbor.Tag
	if err := cbor.Unmarshal(parts[1], &tags); err != nil {
		return "", nil, err
	}
	for _, tag := range tags {
		if tag.Number != 506 {
			return "", nil, errors.New("a tag is not a CoMID")
		}
	}
	delete(parts, 3)
	rest, err := cbor.Marshal(parts)
	return text, rest, err
}
