//! Libraries as other builds make them: with another panic strategy, and from sources of another
//! time.

use kvern_e2e::{Outside, kvern};

#[test]
fn a_plugin_that_aborts_when_it_panics_is_refused_before_it_is_loaded() {
    let outside = Outside::new("kv", "aborts");
    let built = outside.cargo([
        "rustc",
        "--release",
        "--quiet",
        "--crate-type",
        "cdylib",
        "--",
        "-C",
        "panic=abort",
    ]);
    assert_eq!(built.code, Some(0), "{}", built.stderr);
    let library = outside.library().to_string_lossy().into_owned();
    let refused = kvern(&outside.scratch, ["generate", "--prompt", "It", "--kv", &library]);
    assert_eq!(
        refused.refused(1),
        format!(
            "kvern: abi/open: {library} was built with panic = \"abort\", so a panic would end this \
             process: build it with panic = \"unwind\""
        )
    );
}
