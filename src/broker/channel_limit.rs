//! RabbitMQ's limit on the channels of a user (`set_user_limits`, `max-channels`): for one too many it ends the whole connection.
//! The others on that connection lose it once and get their channels again; so that they do not lose it at each further try, those
//! who open a channel in the next minute do so on connections of their own. The session that it is about is refused, unless it
//! comes back from an outage: what it had is waited for. What the client is told is `session::refusal`'s.

use super::death::Loss;
use super::fault::is_channel_limit;
use super::link::{Leased, Slot};
use super::quarantine::{self, Company};
use crate::session::event::Failure;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// AMQP's reply code.
const NOT_ALLOWED: u16 = 530;
/// How long newcomers stay apart.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Of one identity: when it was met last.
#[derive(Default)]
pub(super) struct ChannelLimit(Mutex<Option<Instant>>);

impl ChannelLimit {
    /// Whose links a channel may be opened on, if it may be on `usual` ones else.
    pub(super) fn company(&self, usual: Company, now: Instant) -> Company {
        let met = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match met {
            Some(met) if usual == Company::Any && now <= met + REMEMBERED => Company::Alone,
            _ => usual,
        }
    }

    /// Opens a channel on a reserved place. At the limit the failure says so.
    pub(super) async fn open(&self, slot: Slot) -> Result<Leased, Failure> {
        let link = slot.link().clone();
        let failure = match link.open_channel(slot).await {
            Ok(channel) => return Ok(channel),
            Err(failure) => failure,
        };
        // The operation may fail before it is known why.
        match quarantine::loss(&link).await {
            Some(Loss { reason, .. }) if is_channel_limit(&reason) => {
                *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
                Err(Failure::LinkLost { reason })
            }
            _ => Err(failure),
        }
    }
}

/// What opening a channel failed of, if that was the limit.
pub(super) fn of_opening(failure: &Failure) -> Option<Failure> {
    match failure {
        Failure::LinkLost { reason } if is_channel_limit(reason) => {
            Some(Failure::Refused { reply_code: NOT_ALLOWED, reply_text: reason.clone() })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newcomers_stay_apart_for_a_while() {
        let limit = ChannelLimit::default();
        let now = Instant::now();
        assert_eq!(limit.company(Company::Any, now), Company::Any);
        *limit.0.lock().unwrap() = Some(now);
        assert_eq!(limit.company(Company::Any, now), Company::Alone);
        assert_eq!(limit.company(Company::Suspects, now), Company::Suspects);
        assert_eq!(limit.company(Company::Any, now + REMEMBERED + Duration::from_secs(1)), Company::Any);
    }

    #[test]
    fn the_limit_is_known_by_its_text() {
        let reason =
            "NOT_ALLOWED - number of channels opened for user 'a' has reached the maximum allowed user limit of (6)";
        let failure = of_opening(&Failure::LinkLost { reason: reason.into() });
        assert!(matches!(failure, Some(Failure::Refused { reply_code: 530, .. })));
        assert!(of_opening(&Failure::LinkLost { reason: "NOT_ALLOWED - vhost '/' is down".into() }).is_none());
    }
}
