//! A text with `*` and placeholders in it: one part of a destination, or a user name.
//!
//! Neither splits destinations into parts nor knows whose values the placeholders take.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::placeholder::{Placeholder, Values};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Value(Placeholder),
}

/// What stands between two `*`.
type Run = Vec<Piece>;

/// `*` stands for any characters, also for none. One run more than there are `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Glob(Vec<Run>);

impl Glob {
    /// A part of a destination: with placeholders, and `%XX` for characters that mean something here.
    ///
    /// # Errors
    /// Why it can't be read, for people.
    pub(super) fn parse(text: &str) -> Result<Glob, String> {
        text.split('*').map(parse_run).collect::<Result<_, _>>().map(Glob)
    }

    /// A text in which only `*` means something.
    pub(super) fn plain(text: &str) -> Glob {
        let run = |part: &str| match part {
            "" => Vec::new(),
            _ => vec![Piece::Text(part.to_owned())],
        };
        Glob(text.split('*').map(run).collect())
    }

    /// Whether it matches whatever there is.
    pub(super) fn is_any(&self) -> bool {
        self.0.len() > 1 && self.0.iter().all(Vec::is_empty)
    }

    pub(super) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.0.iter().flatten().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Value(placeholder) => Some(placeholder),
        })
    }

    /// The text, if it is nothing but text.
    pub(super) fn literal(&self) -> Option<&str> {
        match &self.0[..] {
            [run] => text_of(run),
            _ => None,
        }
    }

    /// The text before the first `*` or placeholder.
    pub(super) fn prefix(&self) -> &str {
        match self.0.first().and_then(|run| run.first()) {
            Some(Piece::Text(text)) => text,
            _ => "",
        }
    }

    pub(super) fn matches(&self, text: &str, values: &Values<'_>) -> bool {
        let Some((first, others)) = self.0.split_first() else { return false };
        let Some(first) = values.fill(first) else { return false };
        let Some((last, middle)) = others.split_last() else { return text == first };
        let (Some(rest), Some(last)) = (text.strip_prefix(&*first), values.fill(last)) else { return false };
        let Some(mut rest) = rest.strip_suffix(&*last) else { return false };
        middle.iter().all(|run| {
            let found = values.fill(run).and_then(|run| rest.find(&*run).map(|at| at + run.len()));
            found.map(|end| rest = &rest[end..]).is_some()
        })
    }

    /// Whether everything that `other` matches is surely matched too.
    pub(super) fn covers(&self, other: &Glob) -> bool {
        if self == other || self.is_any() {
            return true;
        }
        if let Some(text) = other.literal() {
            return self.placeholders().next().is_none() && self.matches(text, &Values::NONE);
        }
        let ([before, after], Some(first), Some(last)) = (&self.0[..], other.0.first(), other.0.last()) else {
            return false;
        };
        let edge = |run: &Run| text_of(run).map(str::to_owned);
        let (Some(before), Some(after)) = (edge(before), edge(after)) else { return false };
        let begins = matches!(first.first(), Some(Piece::Text(text)) if text.starts_with(&before)) || before.is_empty();
        let ends = matches!(last.last(), Some(Piece::Text(text)) if text.ends_with(&after)) || after.is_empty();
        // Of one piece alone, beginning and end could be the same characters.
        begins && ends && (before.is_empty() || after.is_empty() || other.0.len() > 1)
    }
}

impl Values<'_> {
    /// The run as text; None if a placeholder of it has no value.
    fn fill<'run>(&self, run: &'run [Piece]) -> Option<Cow<'run, str>> {
        if let Some(text) = text_of(run) {
            return Some(Cow::Borrowed(text));
        }
        let mut filled = String::new();
        for piece in run {
            filled.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Value(placeholder) => self.get(placeholder)?,
            });
        }
        Some(Cow::Owned(filled))
    }
}

fn text_of(run: &[Piece]) -> Option<&str> {
    match run {
        [] => Some(""),
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}

fn parse_run(mut text: &str) -> Result<Run, String> {
    let mut run = Run::new();
    while let Some((before, rest)) = text.split_once('{') {
        let (name, after) = rest.split_once('}').ok_or("\"{\" has no \"}\"; a name with a brace has %7B and %7D")?;
        push_text(&mut run, before)?;
        run.push(Piece::Value(Placeholder::parse(name)?));
        text = after;
    }
    push_text(&mut run, text)?;
    Ok(run)
}

fn push_text(run: &mut Run, text: &str) -> Result<(), String> {
    if text.contains('}') {
        return Err("\"}\" has no \"{\"; a name with a brace has %7B and %7D".to_owned());
    }
    let hex = |at: usize| text.get(at + 1..at + 3).is_some_and(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()));
    if text.match_indices('%').any(|(at, _)| !hex(at)) {
        return Err("\"%\" needs two hexadecimal digits; a percent sign itself is %25".to_owned());
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "does not decode to UTF-8".to_owned())?;
    if decoded.chars().any(char::is_control) {
        return Err("has a control character, which no destination has".to_owned());
    }
    // A part that holds its own separator would never match.
    if decoded.matches('.').count() > text.matches('.').count() {
        return Err("write a dot as it is, not as %2E".to_owned());
    }
    if !decoded.is_empty() {
        run.push(Piece::Text(decoded.into_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        let cases = [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*a", "ba", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a*b*c", "axbyc", true),
            ("a*b*c", "acb", false),
            ("*b*b*", "b", false),
            ("%2A", "*", true),
            ("%2A", "x", false),
            ("a%2Fb", "a/b", true),
        ];
        for (glob, text, expected) in cases {
            assert_eq!(Glob::parse(glob).unwrap().matches(text, &Values::NONE), expected, "{glob} {text}");
        }
    }

    #[test]
    fn covering_is_never_claimed_wrongly() {
        let globs = ["", "a", "ab", "aa", "*", "a*", "*a", "a*a", "a*b", "*a*", "ab*", "a*ab", "b", "**"];
        let texts = ["", "a", "b", "aa", "ab", "ba", "aab", "aba", "abab", "aaa", "bb"];
        let glob = |text| Glob::parse(text).unwrap();
        for (left, right) in globs.iter().flat_map(|left| globs.map(|right| (glob(left), glob(right)))) {
            if left.covers(&right) {
                for text in texts.iter().filter(|text| right.matches(text, &Values::NONE)) {
                    assert!(left.matches(text, &Values::NONE), "{left:?} covers {right:?} but not {text}");
                }
            }
        }
        assert!(glob("a*").covers(&glob("ab*")) && glob("a*").covers(&glob("ab")) && glob("*").covers(&glob("*a*")));
    }
}
