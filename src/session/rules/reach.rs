//! Whether a rule can ever decide anything: not if an earlier one decides all of it.

use super::glob::Glob;
use super::pattern::Pattern;
use super::{Audience, Rule};

impl Rule {
    /// Whether this rule, standing first, surely leaves nothing to `other`.
    pub(super) fn covers(&self, other: &Rule) -> bool {
        let all = |patterns: &[Pattern], others: &[Pattern]| {
            others.iter().all(|other| patterns.iter().any(|pattern| pattern.covers(other, self.effect)))
        };
        self.audience.covers(&other.audience) && all(&self.send, &other.send) && all(&self.subscribe, &other.subscribe)
    }
}

impl Audience {
    fn covers(&self, other: &Audience) -> bool {
        let wider = |globs: &[Glob], others: &[Glob]| {
            let covered = |other: &Glob| globs.iter().any(|glob| glob.covers(other));
            globs.is_empty() || (!others.is_empty() && others.iter().all(covered))
        };
        let proofs = self.proofs.is_empty()
            || (!other.proofs.is_empty() && other.proofs.iter().all(|kind| self.proofs.contains(kind)));
        let spellings = self.spellings == other.spellings || self.users.is_empty();
        proofs
            && spellings
            && wider(&self.users, &other.users)
            && wider(&self.virtual_hosts, &other.virtual_hosts)
            && wider(&self.certificates, &other.certificates)
            && self.claims.iter().all(|(name, glob)| other.claims.get(name).is_some_and(|other| glob.covers(other)))
    }
}
