//! Heart-beat negotiation (STOMP 1.1 and 1.2, "Heart-beating"). Does not measure time and sends nothing.

use std::time::Duration;

/// Longest interval that is agreed to; what a client asks beyond it counts as this.
pub const INTERVAL_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What a client says in `heart-beat:cx,cy`. Zero stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// `cx`: the client can send one this often.
    pub can_send: Duration,
    /// `cy`: the client wants to get one this often.
    pub wants: Duration,
}

/// The header was not two decimal integers with a comma between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "heart-beat must be two whole numbers of milliseconds with a comma between them and no blanks, such as 10000,10000"
)]
pub struct Malformed;

/// How intervals are agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// To the millisecond, but never more often than `minimum`.
    Exact { minimum: Duration },
    /// As RabbitMQ's plugin does: whole seconds, rounded down, at least one. `500,2500` is answered `2000,1000`.
    WholeSeconds,
}

impl Default for Rule {
    fn default() -> Rule {
        Rule::Exact { minimum: Duration::from_secs(1) }
    }
}

/// What was agreed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeats {
    /// We send something at least this often.
    pub send_every: Option<Duration>,
    /// The peer sends something at least this often.
    pub expect_every: Option<Duration>,
}

impl Request {
    /// Reads the header's value. A sign is allowed, and what is not positive means none, as in RabbitMQ's plugin.
    pub fn parse(value: &str) -> Result<Request, Malformed> {
        let (can_send, wants) = value.split_once(',').ok_or(Malformed)?;
        Ok(Request { can_send: parse_interval(can_send)?, wants: parse_interval(wants)? })
    }

    /// What the server does and expects from now on.
    pub fn negotiate(self, rule: Rule) -> Heartbeats {
        Heartbeats { send_every: rule.interval(self.wants), expect_every: rule.interval(self.can_send) }
    }
}

impl Rule {
    fn interval(self, asked: Duration) -> Option<Duration> {
        if asked.is_zero() {
            return None;
        }
        let asked = asked.min(INTERVAL_MAX);
        Some(match self {
            Rule::Exact { minimum } => asked.max(minimum),
            Rule::WholeSeconds => Duration::from_secs(asked.as_secs().max(1)),
        })
    }
}

impl Heartbeats {
    /// The value of `heart-beat` in CONNECTED: what we send, what we expect, in milliseconds.
    pub fn reply(&self) -> String {
        let milliseconds = |interval: Option<Duration>| interval.unwrap_or_default().as_millis();
        format!("{},{}", milliseconds(self.send_every), milliseconds(self.expect_every))
    }
}

fn parse_interval(text: &str) -> Result<Duration, Malformed> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Malformed);
    }
    if negative {
        return Ok(Duration::ZERO);
    }
    // Only digits are left, so parsing can fail in one way: a number beyond u64, which is beyond the longest interval.
    Ok(digits.parse().map_or(INTERVAL_MAX, Duration::from_millis).min(INTERVAL_MAX))
}

#[cfg(test)]
mod tests {
    use super::{Heartbeats, INTERVAL_MAX, Malformed, Request, Rule};
    use std::time::Duration;

    fn reply(value: &str, rule: Rule) -> String {
        Request::parse(value).unwrap().negotiate(rule).reply()
    }

    #[test]
    fn exact_replies_swap_the_two_numbers() {
        assert_eq!(reply("5000,7001", Rule::default()), "7001,5000");
        assert_eq!(reply("0,0", Rule::default()), "0,0");
        assert_eq!(reply("0,2500", Rule::default()), "2500,0");
        assert_eq!(reply("2500,0", Rule::default()), "0,2500");
    }

    #[test]
    fn exact_intervals_are_never_below_the_minimum() {
        assert_eq!(reply("1,999", Rule::default()), "1000,1000");
        assert_eq!(reply("1,999", Rule::Exact { minimum: Duration::from_millis(100) }), "999,100");
        assert_eq!(reply("1,0", Rule::Exact { minimum: Duration::from_secs(20) }), "0,20000");
    }

    #[test]
    fn whole_seconds_are_rounded_down_and_at_least_one() {
        assert_eq!(reply("500,2500", Rule::WholeSeconds), "2000,1000");
        assert_eq!(reply("5000,7000", Rule::WholeSeconds), "7000,5000");
        assert_eq!(reply("1,999", Rule::WholeSeconds), "1000,1000");
        assert_eq!(reply("0,1999", Rule::WholeSeconds), "1000,0");
    }

    #[test]
    fn agreed_intervals_name_both_directions() {
        let agreed = Request::parse("3000,4000").unwrap().negotiate(Rule::default());
        assert_eq!(agreed.send_every, Some(Duration::from_secs(4)));
        assert_eq!(agreed.expect_every, Some(Duration::from_secs(3)));
        assert_eq!(Request::default().negotiate(Rule::default()), Heartbeats::default());
    }

    #[test]
    fn what_is_not_positive_means_none() {
        assert_eq!(reply("-5,-1000", Rule::default()), "0,0");
        assert_eq!(reply("-5,+1000", Rule::WholeSeconds), "1000,0");
    }

    #[test]
    fn intervals_beyond_a_day_count_as_a_day() {
        let digits = "9".repeat(500);
        for value in ["86400001,172800000", "18446744073709551615,18446744073709551616", &format!("{digits},{digits}")]
        {
            let request = Request::parse(value).unwrap();
            assert_eq!(request, Request { can_send: INTERVAL_MAX, wants: INTERVAL_MAX }, "{value}");
            assert_eq!(request.negotiate(Rule::WholeSeconds).reply(), "86400000,86400000");
        }
    }

    #[test]
    fn anything_but_two_whole_numbers_is_malformed() {
        for value in
            ["", ",", "1", "1,", ",1", "1,2,3", " 1,2", "1, 2", "1,2 ", "1.5,2", "a,b", "--1,2", "-,1", "0x1,2"]
        {
            assert_eq!(Request::parse(value), Err(Malformed), "{value:?}");
        }
    }
}
