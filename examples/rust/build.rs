// SPDX-License-Identifier: Apache-2.0
//! Links libsnpcerts, which pkg-config finds.

fn main() {
    pkg_config::Config::new().statik(true).probe("snpcerts").expect("libsnpcerts");
}
