//! Quarantine: finding the one session whose doing, or whose queue's content, kills the links it is on.
//!
//! Every session on a link that dies by a protocol error gets a strike. With one strike it shares links with few others
//! that have one too, with two it gets a link of its own; if that dies the same way, the session is the culprit. So the
//! innocents lose at most two links, and sessions without a strike never meet a suspect.

use super::death::{Death, Loss};
use super::link::Link;
use crate::patience;
use crate::session::amqp::ShortText;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// How long a strike counts, and how long a quarantined link must live before it is a link like any other.
const STRIKE_KEPT: Duration = Duration::from_secs(60);
/// The first pause after the broker's own state has ended a link is that of so many attempts and one more: 0.4 to 0.8 s.
const SETBACK_ATTEMPTS: u32 = 2;
/// Sessions on a link for suspects.
const SUSPECTS_PER_LINK: u16 = 8;
/// Quarantined links at a time, over all identities: each costs lapin's thread and buffers. Further suspects wait.
const QUARANTINE_LINKS_MAX: usize = 32;
/// How long a suspect waits for one of them before it tries again later.
const QUARANTINE_WAIT: Duration = Duration::from_secs(10);
/// How long a failed session waits to be told what its link died of.
const JUDGEMENT_PATIENCE: Duration = Duration::from_secs(2);
/// Queues that are remembered as blamed; beyond it the oldest are forgotten.
const BLAMED_MAX: usize = 1024;

/// Which company a session may keep, and which a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    Any,
    Suspects,
    Alone,
}

impl Company {
    /// Sessions per link, if ordinary links have `ordinary`.
    pub(super) fn places(self, ordinary: u16) -> u16 {
        match self {
            Company::Any => ordinary,
            Company::Suspects => ordinary.min(SUSPECTS_PER_LINK),
            Company::Alone => 1,
        }
    }
}

/// What is held against a session, for one role.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suspicion {
    /// The side was lost before.
    comes_back: bool,
    strikes: u32,
    last: Option<Instant>,
    /// The last link died of the broker's own state.
    stalled: bool,
}

impl Suspicion {
    pub(super) fn company(&self, now: Instant) -> Company {
        match (self.last, self.strikes) {
            (Some(last), strikes) if now <= last + STRIKE_KEPT => match strikes {
                0 => Company::Any,
                1 => Company::Suspects,
                _ => Company::Alone,
            },
            _ => Company::Any,
        }
    }

    /// Others are not to be on its links.
    pub(super) fn keep_apart(&mut self, now: Instant) {
        *self = Suspicion { strikes: 2, last: Some(now), stalled: false, ..*self };
    }

    pub(super) fn comes_back(self) -> Suspicion {
        Suspicion { comes_back: true, ..self }
    }

    pub(super) fn is_newcomer(&self) -> bool {
        !self.comes_back
    }

    pub(super) fn strike(&mut self, death: Death, now: Instant) {
        self.strikes = if self.company(now) == Company::Any { 1 } else { self.strikes + 1 };
        self.last = Some(now);
        self.stalled = matches!(death, Death::State { .. });
    }

    /// The attempt that the next one counts as, at least, for the pause before it: what met the broker's own state is held
    /// back, longer each time in a row.
    pub(super) fn attempt(&self, now: Instant) -> u32 {
        if self.stalled && self.company(now) != Company::Any { self.strikes + SETBACK_ATTEMPTS } else { 0 }
    }
}

/// Nodes that have no replica of a stream that is wanted. Boxed where they are kept, because hardly any session has some.
#[derive(Clone, Default)]
pub(super) struct Avoided(pub(super) Vec<String>);

/// What a side that was lost leaves to the next one.
#[derive(Clone, Default)]
pub(super) struct Past {
    /// A queue whose node is away: to ask for it as before would cost the channel again, and what was delivered on it.
    pub(super) absent: Option<Box<ShortText>>,
    pub(super) avoid: Option<Box<Avoided>>,
    pub(super) link: Option<Arc<Link>>,
    pub(super) suspicion: Suspicion,
}

impl Past {
    /// What is held against the session, with what became of the link.
    pub(super) async fn judge(&self) -> Suspicion {
        let mut suspicion = self.suspicion;
        if let Some(link) = &self.link
            && let Some(Loss { death: death @ (Death::Protocol { .. } | Death::State { .. }), .. }) = loss(link).await
        {
            suspicion.strike(death, Instant::now());
        }
        suspicion
    }
}

/// How this link ended, if it did; an operation may fail before that is known.
pub(super) async fn loss(link: &Link) -> Option<Loss> {
    if link.is_connected() {
        return link.state().lost;
    }
    let mut state = link.watch();
    let lost = patience::timeout(JUDGEMENT_PATIENCE, state.wait_for(|state| state.lost.is_some())).await;
    lost.ok()?.ok()?.lost.clone()
}

/// A place among the quarantined links.
pub(super) type Place = OwnedSemaphorePermit;

/// The bounds of the quarantine, and which queues it has found.
pub(super) struct Quarantine {
    places: Arc<Semaphore>,
    blamed: Mutex<HashMap<(String, ShortText), Instant>>,
}

impl Default for Quarantine {
    fn default() -> Quarantine {
        Quarantine { places: Arc::new(Semaphore::new(QUARANTINE_LINKS_MAX)), blamed: Mutex::default() }
    }
}

impl Quarantine {
    pub(super) async fn place(&self) -> Result<Place, String> {
        let place = patience::timeout(QUARANTINE_WAIT, self.places.clone().acquire_owned()).await;
        place
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| format!("all {QUARANTINE_LINKS_MAX} quarantine connections are in use"))
    }

    /// Sessions that consume these queues of a virtual host get links of their own for a while.
    pub(super) fn blame(&self, vhost: &str, queues: &[ShortText], now: Instant) {
        let mut blamed = self.blamed.lock().unwrap_or_else(PoisonError::into_inner);
        blamed.retain(|_, since| now <= *since + STRIKE_KEPT);
        for queue in queues {
            if blamed.len() >= BLAMED_MAX
                && let Some(oldest) = blamed.iter().min_by_key(|(_, since)| **since).map(|(queue, _)| queue.clone())
            {
                blamed.remove(&oldest);
            }
            blamed.insert((vhost.to_owned(), queue.clone()), now);
        }
    }

    pub(super) fn is_blamed(&self, vhost: &str, queue: &ShortText, now: Instant) -> bool {
        let blamed = self.blamed.lock().unwrap_or_else(PoisonError::into_inner);
        // Empty but in the rarest of cases, so the key is hardly ever made.
        !blamed.is_empty()
            && blamed.get(&(vhost.to_owned(), queue.clone())).is_some_and(|since| now <= *since + STRIKE_KEPT)
    }
}

/// A link's side of it: for whom it is, and its place, until it has lived long enough.
pub(super) struct Seclusion {
    company: Company,
    place: Mutex<Option<Place>>,
    since: Instant,
}

impl Seclusion {
    pub(super) fn new(company: Company, place: Option<Place>) -> Seclusion {
        Seclusion { company, place: Mutex::new(place), since: Instant::now() }
    }

    /// Whether it was made for a single session, so that what it dies of is that session's doing.
    pub(super) fn is_for_one(&self) -> bool {
        self.company(Instant::now()) == Company::Alone
    }

    pub(super) fn company(&self, now: Instant) -> Company {
        if self.company != Company::Any && now > self.since + STRIKE_KEPT {
            self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Company::Any;
        }
        self.company
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOL: Death = Death::Protocol { reply_code: 501 };
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn strikes_separate_and_fade() {
        let (mut suspicion, now) = (Suspicion::default(), Instant::now());
        assert_eq!(suspicion.company(now), Company::Any);
        suspicion.strike(PROTOCOL, now);
        assert_eq!(suspicion.company(now), Company::Suspects);
        suspicion.strike(PROTOCOL, now);
        assert_eq!(suspicion.company(now), Company::Alone);
        let later = now + STRIKE_KEPT + SECOND;
        assert_eq!(suspicion.company(later), Company::Any);
        suspicion.strike(PROTOCOL, later);
        assert_eq!(suspicion.company(later), Company::Suspects);
    }

    #[test]
    fn what_the_broker_cannot_do_is_held_back_longer_each_time() {
        let (mut suspicion, now) = (Suspicion::default(), Instant::now());
        assert_eq!(suspicion.attempt(now), 0);
        let state = Death::State { reply_code: 506 };
        suspicion.strike(state, now);
        assert_eq!(suspicion.attempt(now), 3);
        suspicion.strike(state, now);
        assert_eq!((suspicion.attempt(now), suspicion.company(now)), (4, Company::Alone));
        assert_eq!(suspicion.attempt(now + STRIKE_KEPT + SECOND), 0);
        suspicion.strike(PROTOCOL, now);
        assert_eq!(suspicion.attempt(now), 0, "that is a culprit's");
    }

    #[tokio::test]
    async fn places_are_bounded_and_come_back_with_time() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let mut links = Vec::new();
        for _ in 0..QUARANTINE_LINKS_MAX {
            links.push(Seclusion::new(Company::Alone, Some(quarantine.place().await.expect("free"))));
        }
        assert_eq!(quarantine.places.available_permits(), 0);
        assert!(links.iter().all(|link| link.company(now) == Company::Alone));
        assert!(links.iter().all(|link| link.company(now + STRIKE_KEPT + SECOND) == Company::Any));
        assert_eq!(quarantine.places.available_permits(), QUARANTINE_LINKS_MAX);
    }

    #[test]
    fn blame_is_bounded_and_fades() {
        let (quarantine, now) = (Quarantine::default(), Instant::now());
        let queue = |number: u32| ShortText::new(format!("q{number}")).expect("short");
        let last = BLAMED_MAX as u32;
        (0..=last)
            .for_each(|number| quarantine.blame("/", &[queue(number)], now + Duration::from_micros(number.into())));
        assert!(!quarantine.is_blamed("/", &queue(0), now) && quarantine.is_blamed("/", &queue(last), now));
        assert!(!quarantine.is_blamed("other", &queue(1), now));
        assert!(!quarantine.is_blamed("/", &queue(last), now + STRIKE_KEPT + SECOND));
    }
}
