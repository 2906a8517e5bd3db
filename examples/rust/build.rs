// SPDX-License-Identifier: Apache-2.0
//! Finds libsnpcerts with pkg-config and links it.

fn main() {
    pkg_config::Config::new().statik(true).probe("snpcerts").expect("pkg-config found no libsnpcerts");
}
