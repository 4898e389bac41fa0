//! What is wrong with the keys of the door is said in one run, with the form to write.

use stomp_relay::config::{Config, Overrides};

use crate::support::scratch::Scratch;

fn load(text: &str) -> Result<Config, String> {
    let folder = Scratch::new();
    let file = folder.write("relay.toml", text);
    Config::load(Some(&file), std::iter::empty(), &Overrides::default()).map_err(|problems| problems.to_string())
}

#[test]
fn wrong_origins_and_networks_are_explained() {
    let text = "[http]\norigins = [\"app.example.com\", \"https://app.example.com/x\", \"https://ok.example.com\"]\n\
                [proxy]\ntrusted = [\"10.0.0.0/33\", \"proxy.example.com\"]\nprotocol_from = [\"2001:db8::/129\"]\n\
                header = \"x-real-ip\"\n[limits]\nrate_wait_max = \"2h\"\nhandshake_burst_max = 0\n";
    let problems = load(text).unwrap_err();
    for wanted in [
        "\"app.example.com\" is no origin; write \"https://app.example.com\"",
        "\"https://app.example.com/x\" is no origin",
        "\"10.0.0.0/33\" is neither an address nor a network; write \"10.0.0.5\" or \"10.0.0.0/8\"",
        "\"proxy.example.com\" is neither",
        "\"2001:db8::/129\" is neither",
        "\"x-real-ip\" is not \"x-forwarded-for\" or \"forwarded\"",
        "rate_wait_max",
        "handshake_burst_max",
    ] {
        assert!(problems.contains(wanted), "{wanted} is not in {problems}");
    }
    assert!(!problems.contains("ok.example.com"), "{problems}");
}

#[test]
fn networks_and_single_addresses_are_taken() {
    let config =
        load("[proxy]\ntrusted = [\"10.0.0.5\", \"fd00::/8\", \"::1\"]\nprotocol_from = [\"10.1.0.0/16\"]\n").unwrap();
    let shown: Vec<String> = config.proxy.trusted.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.5/32", "fd00::/8", "::1/128"]);
    assert!(load("").unwrap().proxy.trusted.is_empty(), "nobody is trusted by default");
}

proptest::proptest! {
    /// Whatever a client sends as its origin: the line that the log suggests for it is one that `check` takes.
    #[test]
    fn every_suggested_line_is_taken(origin in "([a-zA-Z][a-z0-9+.-]{0,8}://)?[ -~\u{80}-\u{ff}]{0,20}/?") {
        if let Some(entry) = stomp_relay::listener::entry_for(&origin) {
            let config = load(&format!("[http]\norigins = [\"{entry}\"]\n"));
            proptest::prop_assert!(config.is_ok(), "{origin:?}: {config:?}");
        }
    }
}
