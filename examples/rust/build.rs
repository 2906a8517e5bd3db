// SPDX-License-Identifier: Apache-2.0
//! Links libsnpcerts as pkg-config finds it.

fn main() {
    pkg_config::Config::new().statik(true).probe("snpcerts").expect("libsnpcerts");
}
