//! Who a client is, once that is verified: the name, by which proof, and what a token or a certificate says besides. Where it comes
//! from, and how it is verified, is decided outside the session. And when two spellings are one name.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Instant;

use stringprep::tables;
use unicode_normalization::UnicodeNormalization;

use super::proof::ProofKind;

/// As whom a client works at RabbitMQ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Account {
    /// As itself: what RabbitMQ says of the account is about the client.
    #[default]
    Own,
    /// As an account of the relay's that many share: its name and what RabbitMQ thinks of it are the operator's business.
    Service,
}

#[derive(Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub account: Account,
    /// RabbitMQ's user where RabbitMQ checks the login, else the name that the token or certificate gives.
    pub user: String,
    /// By what it was proven.
    pub proof: ProofKind,
    /// What a token says that is a text or a list of texts, by name; `a.b` is `b` in the object `a`.
    pub claims: BTreeMap<String, Vec<String>>,
    /// The client's certificate is no longer valid then, and the session ends with it.
    pub certificate_ends_at: Option<Instant>,
    /// Common name of the client's certificate.
    pub certificate_name: Option<String>,
    /// The token's time is over then, and the session ends with it, unless the identity is renewed before. For a token, some moment between its end and that of the
    /// leeway.
    pub expires_at: Option<Instant>,
}

impl Identity {
    /// When the session ends, whichever of its proofs does first.
    pub fn ends_at(&self) -> Option<Instant> {
        [self.expires_at, self.certificate_ends_at].into_iter().flatten().min()
    }

    /// A user that RabbitMQ has checked.
    pub fn of_login(user: &str) -> Identity {
        Identity { user: user.to_owned(), ..Identity::default() }
    }
}

/// Whether two spellings of a user's name are one user. RabbitMQ itself tells `Bob` from `bob`; directories behind it often do not,
/// and let `Bob` in as `bob`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserCase {
    /// They are two users, everywhere.
    Exact,
    /// Where that is to somebody's disadvantage they are one: rules that deny, limits and users of this machine only. A rule that
    /// allows is for the spelling that it has.
    #[default]
    Guarded,
    /// They are one, and it is written in lower case, towards RabbitMQ too.
    Lower,
}

impl UserCase {
    /// The name that a user has from now on.
    pub fn name(self, user: &str) -> Cow<'_, str> {
        match self {
            UserCase::Exact | UserCase::Guarded => Cow::Borrowed(user),
            UserCase::Lower => Cow::Owned(fold(user)),
        }
    }

    /// What all spellings that count as one user have in common.
    pub fn counted(self, user: &str) -> Cow<'_, str> {
        match self {
            UserCase::Exact => Cow::Borrowed(user),
            UserCase::Guarded | UserCase::Lower => Cow::Owned(fold(user)),
        }
    }
}

/// One spelling for all that a directory takes for the same: RFC 4518 drops characters that are not seen, folds case
/// (`\u{df}` is `ss`), takes the plain forms of wide and composed characters, and makes blanks alike.
pub fn fold(name: &str) -> String {
    // Most names: nothing in them is unseen, wide, composed or a blank.
    if name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return name.to_ascii_lowercase();
    }
    let seen = name.chars().filter(|character| !is_unseen(*character));
    let folded: String = seen.flat_map(tables::case_fold_for_nfkc).nfkc().collect();
    let words: Vec<&str> = folded.split_whitespace().collect();
    words.join(" ")
}

/// RFC 4518 section 2.2: what is mapped to nothing. A tab or the end of a line is a blank.
fn is_unseen(character: char) -> bool {
    let control = tables::ascii_control_character(character) || tables::non_ascii_control_character(character);
    tables::commonly_mapped_to_nothing(character)
        || tables::change_display_properties_or_deprecated(character)
        || tables::tagging_character(character)
        || (control && !character.is_whitespace())
        || character == '\u{fffc}'
}

/// Without the claims: they are about a person.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("user", &self.user)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_name_count_as_one_unless_they_are_to_be_told_apart() {
        for spelling in ["contractor", "Contractor", "CONTRACTOR", " contractor", "contractor "] {
            assert_eq!(UserCase::Guarded.counted(spelling), "contractor");
            assert_eq!(UserCase::Lower.name(spelling), "contractor");
            assert_eq!(UserCase::Guarded.name(spelling), spelling);
            assert_eq!(UserCase::Exact.counted(spelling), spelling);
        }
        assert_ne!(fold("ab"), fold("a b"));
        assert_eq!(fold("Jürgen  Ö"), fold("JÜRGEN ö"));
        for spelling in [
            "STRASSE",
            "straße",
            "ｓｔｒａｓｓｅ",
            "stra\u{200b}sse",
            "stra\u{ad}sse",
            "\u{feff}strasse\t",
            "s\u{7}trasse",
        ] {
            assert_eq!(fold(spelling), "strasse", "{spelling:?}");
        }
        // What is nothing but ASCII takes a shorter way to the same.
        assert_eq!(fold("A.b-C_1@D+\\"), fold("\u{200b}A.b-C_1@D+\\"));
        assert_eq!(fold("Ju\u{308}rgen"), fold("jürgen"));
        assert_eq!(fold("CN=Client *"), "cn=client *");
    }
}
