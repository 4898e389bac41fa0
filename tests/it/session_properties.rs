//! What holds for a session whatever its client, broker, socket and clock do, on random sequences of what they may do.
//! The fuzz target `session` plays the same.

mod play;

use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any, proptest};

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sessions_keep_their_promises(bytes in vec(any::<u8>(), 0..600)) {
        play::play(&bytes);
    }
}

/// Random plays are of use only if they come far.
#[test]
fn plays_come_far() {
    let mut random = 0x5eed_u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 56) as u8
    };
    let plays: Vec<_> = (0..300).map(|_| play::play(&(0..500).map(|_| next()).collect::<Vec<u8>>())).collect();
    let share = |what: fn(&play::Played) -> u64, least: u64| {
        let far = plays.iter().filter(|played| what(played) >= least).count();
        far * 100 / plays.len()
    };
    let shares = [
        share(|played| played.stats.messages_published, 3),
        share(|played| played.stats.messages_confirmed, 3),
        share(|played| played.stats.messages_delivered, 3),
        share(|played| played.receipts as u64, 4),
        share(|played| played.commits as u64, 1),
        share(|played| played.errors as u64, 1),
        share(|played| played.stats.suspensions, 1),
        share(|played| played.stats.messages_repeated, 1),
    ];
    assert!(shares.iter().all(|share| *share >= 20), "percent of plays with messages published, …: {shares:?}");
}
