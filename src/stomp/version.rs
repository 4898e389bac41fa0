//! Protocol versions and their negotiation. Does not know what differs between them.

/// A version of STOMP; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    V1_0,
    V1_1,
    V1_2,
}

impl Version {
    /// All versions as an `accept-version` or `version` header lists them.
    pub const SUPPORTED: &'static str = "1.0,1.1,1.2";

    pub fn as_str(self) -> &'static str {
        match self {
            Version::V1_0 => "1.0",
            Version::V1_1 => "1.1",
            Version::V1_2 => "1.2",
        }
    }

    /// The highest version that both sides speak; `None` if there is none (STOMP 1.2, "Protocol Negotiation").
    ///
    /// Without `accept-version` the client speaks 1.0. Unknown entries are passed over. Blanks around an entry are
    /// trimmed, which RabbitMQ's plugin does not do: it takes `1.1, 1.2` for 1.1.
    pub fn negotiate(accept_version: Option<&str>) -> Option<Version> {
        let Some(list) = accept_version else { return Some(Version::V1_0) };
        list.split(',').filter_map(|entry| Version::from_entry(entry.trim())).max()
    }

    fn from_entry(entry: &str) -> Option<Version> {
        [Version::V1_0, Version::V1_1, Version::V1_2].into_iter().find(|version| version.as_str() == entry)
    }
}

#[cfg(test)]
mod tests {
    use super::Version::{self, V1_0, V1_1, V1_2};

    #[test]
    fn a_client_that_says_nothing_speaks_1_0() {
        assert_eq!(Version::negotiate(None), Some(V1_0));
    }

    #[test]
    fn an_empty_list_has_nothing_in_common() {
        assert_eq!(Version::negotiate(Some("")), None);
        assert_eq!(Version::negotiate(Some(",")), None);
    }

    #[test]
    fn unknown_versions_have_nothing_in_common() {
        for list in ["1.3", "2.0", "1", "1.2.0", "1.10", "01.2", "1.0 1.1"] {
            assert_eq!(Version::negotiate(Some(list)), None, "{list}");
        }
    }

    #[test]
    fn a_single_common_version_is_chosen() {
        assert_eq!(Version::negotiate(Some("1.0")), Some(V1_0));
        assert_eq!(Version::negotiate(Some("1.1")), Some(V1_1));
        assert_eq!(Version::negotiate(Some("1.2")), Some(V1_2));
        assert_eq!(Version::negotiate(Some("0.9,1.1,7.0")), Some(V1_1));
    }

    #[test]
    fn the_highest_common_version_is_chosen_in_any_order() {
        assert_eq!(Version::negotiate(Some("1.0,1.1")), Some(V1_1));
        assert_eq!(Version::negotiate(Some("1.2,1.0,1.1")), Some(V1_2));
        assert_eq!(Version::negotiate(Some("1.1,1.20,1.10")), Some(V1_1));
    }

    #[test]
    fn duplicates_are_harmless() {
        assert_eq!(Version::negotiate(Some("1.1,1.1,1.0,1.1")), Some(V1_1));
    }

    #[test]
    fn blanks_around_entries_are_trimmed() {
        assert_eq!(Version::negotiate(Some(" 1.1 , 1.2 ")), Some(V1_2));
    }

    #[test]
    fn the_supported_list_negotiates_to_the_latest() {
        assert_eq!(Version::negotiate(Some(Version::SUPPORTED)), Some(V1_2));
    }
}
