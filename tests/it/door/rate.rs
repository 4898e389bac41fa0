//! Token buckets: burst, rate, and what is saved up.

use std::time::{Duration, Instant};

use stomp_relay::rate::{Bucket, Rate};

const RATE: Rate = Rate { per_second: 10, burst: 3 };

fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
    let (now, mut bucket) = (Instant::now(), Bucket::default());
    let waits: Vec<_> = (0..6)
        .map(|_| {
            let wait = bucket.wait(RATE, now);
            bucket.take(RATE, now);
            wait
        })
        .collect();
    assert_eq!(waits, [0, 0, 0, 100, 200, 300].map(milliseconds));
    assert_eq!(bucket.wait(RATE, now + milliseconds(350)), milliseconds(50));
    assert!(!bucket.is_full(now + milliseconds(599)) && bucket.is_full(now + milliseconds(600)));
}

#[test]
fn what_is_not_used_is_saved_up_to_the_burst_only() {
    let (now, mut bucket) = (Instant::now(), Bucket::default());
    bucket.take(RATE, now);
    let later = now + Duration::from_secs(3600);
    for _ in 0..3 {
        assert_eq!(bucket.wait(RATE, later), Duration::ZERO);
        bucket.take(RATE, later);
    }
    assert_eq!(bucket.wait(RATE, later), milliseconds(100));
}

#[test]
fn no_limit_never_waits() {
    let (now, mut bucket) = (Instant::now(), Bucket::default());
    for _ in 0..1000 {
        bucket.take(Rate::UNLIMITED, now);
    }
    assert_eq!(bucket.wait(Rate::UNLIMITED, now), Duration::ZERO);
    assert!(bucket.is_full(now));
}

#[test]
fn a_burst_of_none_counts_as_one() {
    let (now, mut bucket, rate) = (Instant::now(), Bucket::default(), Rate { per_second: 2, burst: 0 });
    assert_eq!(bucket.wait(rate, now), Duration::ZERO);
    bucket.take(rate, now);
    assert_eq!(bucket.wait(rate, now), milliseconds(500));
}
