//! The example files: they parse, and say what the site's documents say.

#[test]
fn the_minimal_site_parses_without_a_warning() {
    let parsed =
        config::parse("minimal.toml", include_str!("../examples/minimal.toml")).unwrap_or_else(|e| panic!("{e}"));
    assert!(parsed.warnings.is_empty(), "{}", parsed.warnings);
    println!("{:#?}", parsed.config);
}

#[test]
fn debug_site() {
    match config::parse("spectrum-site.toml", include_str!("../examples/spectrum-site.toml")) {
        Ok(parsed) => println!("OK\n{}", parsed.warnings),
        Err(problems) => panic!("{problems}"),
    }
}
