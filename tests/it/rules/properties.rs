//! What holds for every value and every pattern.

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;

use stomp_relay::session::identity::Identity;
use stomp_relay::session::rules::{RuleSet, Stance};

use super::play::{self, lets_through};
use super::{allow, allowed, who};

fn words(choice: &'static [&'static str]) -> impl Strategy<Value = String> {
    vec(select(choice), 1..5).prop_map(|words| words.join("."))
}

/// Texts that people, or attackers, put into claims.
fn value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ab./*#%{}]{0,6}",
        select(vec!["*", "**", "#", "a.b", "%2F", "%2A", "{username}", "a/b", "a b", "acme"]).prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A placeholder stands for its value, character by character, or for nothing.
    #[test]
    fn no_value_widens_a_pattern(value in value(), other in "[ab.*#]{1,8}") {
        let harmless = !value.is_empty()
            && value.len() <= 200
            && !value.chars().any(|c| "/.*#%{}".contains(c) || c.is_control());
        let mut client = (Identity::default(), "/".to_owned());
        client.0.claims.insert("org".to_owned(), vec![value.clone()]);
        let rules = RuleSet::new(vec![allow(&["/queue/q-{claim.org}.x", "/topic/t.{claim.org}.*"])]);
        let judge = |frame: &str| allowed(&rules, Stance::Open, &client, frame);
        // Blanks would end the destination in this test's way to write frames.
        if !value.contains(' ') && value.len() <= 200 {
            assert_eq!(judge(&format!("SEND /queue/q-{value}.x")), harmless, "{value:?}");
            assert_eq!(judge(&format!("SUBSCRIBE /topic/t.{value}.y")), harmless, "{value:?}");
        }
        for (name, key) in [(format!("q-{other}.x"), format!("t.{other}.y")), (other.clone(), other.clone())] {
            let same = harmless && other == value && name != other;
            assert_eq!(judge(&format!("SEND /queue/{name}")), same, "{value:?} as {other:?}");
            assert_eq!(judge(&format!("SUBSCRIBE /topic/{key}")), same, "{value:?} as {other:?}");
        }
    }

    /// Nothing reaches a subscription that its subscriber could not have subscribed to by itself.
    #[test]
    fn an_allowed_subscription_matches_allowed_keys_only(
        pattern in words(&["a", "b", "*", "a*"]),
        open in any::<bool>(),
        binding in words(&["a", "b", "ab", "*", "#"]),
        keys in vec(words(&["a", "b", "ab", ""]), 20),
    ) {
        let pattern = format!("/topic/{pattern}{}", if open { ".**" } else { "" });
        let rules = RuleSet::new(vec![allow(&[&pattern])]);
        let judge = |frame: &str| allowed(&rules, Stance::Open, &who("alice"), frame);
        if judge(&format!("SUBSCRIBE /topic/{binding}")) {
            for key in keys.iter().filter(|key| lets_through(&play::words(&binding), &play::words(key))) {
                let sent = key.is_empty() || judge(&format!("SEND /topic/{key}"));
                assert!(sent, "{pattern} allows {binding}, which matches {key}");
            }
        }
    }

    /// What the fuzz target asserts, on texts that get far.
    #[test]
    fn plays_keep_what_must_hold(
        pattern in prop_oneof![words(&["a", "*", "a*", "{claim.c}", "{username}*"]), words(&["a", "b"]).prop_map(|w| w + ".**")],
        kind in select(vec!["/topic/", "/queue/", "/exchange/amq.topic/", "/exchange/a/"]),
        value in value(),
        destination in words(&["a", "b", "ab", "*", "#"]),
        to in select(vec!["/topic/", "/queue/", "/amq/queue/", "/exchange/amq.topic/", ""]),
        keys in vec(words(&["a", "b", "ab", ""]), 10),
    ) {
        let value = value.replace('\n', "");
        play::play(&format!("{kind}{pattern}\n{value}\n{to}{destination}\n{}", keys.join("\n")));
    }
}
