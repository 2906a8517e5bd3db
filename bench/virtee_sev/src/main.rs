// SPDX-License-Identifier: Apache-2.0

//! Makes the crate `sev` verify the same evidence again and again.
//!
//! `whole` parses report, table and certificates each time and verifies the chain; `known` parses
//! the leaf once, and each time only parses the report and verifies it with that leaf.

use std::error::Error;
use std::{env, fs};

use sev::certs::snp::{Chain, Verifiable};
use sev::firmware::guest::AttestationReport;
use sev::firmware::host::CertTableEntry;
use sev::parser::ByteParser;

const REPORT_SIZE: usize = 1184;

fn main() -> Result<(), Box<dyn Error>> {
    let argv: Vec<String> = env::args().collect();
    let [_, mode, path, count] = &argv[..] else {
        return Err("usage: (whole|known) EVIDENCE COUNT".into());
    };
    let evidence = fs::read(path)?;
    let count: u32 = count.parse()?;
    let (report, table) = evidence.split_at(REPORT_SIZE);
    let leaf = chain(table)?.vek;
    let whole = mode == "whole";
    let once = || -> Result<(), Box<dyn Error>> {
        let read = AttestationReport::from_bytes(report)?;
        if whole {
            (&chain(table)?, &read).verify()?;
        } else {
            (&leaf, &read).verify()?;
        }
        Ok(())
    };
    for _ in 0..count {
        once()?;
    }
    Ok(())
}

fn chain(table: &[u8]) -> Result<Chain, Box<dyn Error>> {
    let entries = CertTableEntry::vec_bytes_to_cert_table(&mut table.to_vec())?;
    Ok(Chain::from_cert_table_der(entries)?)
}
