//! Does nothing. `cargo kvern` names it when it builds, because a build that has an example in it
//! resolves features as `cargo test` does: with development dependencies. Without it a build and a
//! test would want candle with different features, and compile it twice.

fn main() {}
