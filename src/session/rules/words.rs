//! Names and keys as lists of words with a dot between, which is how RabbitMQ's topic exchanges read them; and which lists a
//! pattern of words admits. The one place that compares patterns with AMQP's own wildcards.
//!
//! In a pattern `*` is within one word and `**`, at the end, is any number of words. In a binding key `*` is one word and `#`
//! any number, anywhere.

use super::glob::Glob;
use super::placeholder::{Placeholder, Values};

/// More words than a key of 255 bytes can have.
const WORDS_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Words {
    globs: Vec<Glob>,
    /// Ends with `**`.
    open: bool,
}

impl Words {
    /// # Errors
    /// Why it can't be read, for people.
    pub(super) fn parse(text: &str) -> Result<Words, String> {
        let mut words = outside_braces(text, '.');
        if text.is_empty() {
            words.clear();
        }
        let open = words.last() == Some(&"**");
        if open {
            words.pop();
        }
        if words.iter().any(|word| word.contains("**")) {
            return Err("\"**\" stands for all further parts: it must be the last part, alone between dots".to_owned());
        }
        if words.contains(&"#") {
            return Err("\"#\" is AMQP's; write \"**\" as the last part, or %23 for the character".to_owned());
        }
        if words.len() > WORDS_MAX {
            return Err("has more parts than any name".to_owned());
        }
        let globs = words.into_iter().map(Glob::parse).collect::<Result<_, _>>()?;
        Ok(Words { globs, open })
    }

    pub(super) fn all() -> Words {
        Words { globs: Vec::new(), open: true }
    }

    pub(super) fn placeholders(&self) -> impl Iterator<Item = &Placeholder> {
        self.globs.iter().flat_map(Glob::placeholders)
    }

    /// What every text that it admits begins with.
    pub(super) fn prefix(&self) -> String {
        let mut prefix = String::new();
        for glob in &self.globs {
            let Some(text) = glob.literal() else { return prefix + glob.prefix() };
            prefix.push_str(text);
            prefix.push('.');
        }
        if !self.open {
            prefix.pop();
        }
        prefix
    }

    /// Whether it admits this name or routing key, in which no character is a wildcard.
    pub(super) fn admits(&self, text: &str, values: &Values<'_>) -> bool {
        let words = split(text);
        let fits = if self.open { words.len() >= self.globs.len() } else { words.len() == self.globs.len() };
        fits && self.globs.iter().zip(words).all(|(glob, word)| glob.matches(word, values))
    }

    /// Whether it admits every routing key that a topic exchange lets through a binding with this key, and the key itself,
    /// which is all that other exchanges let through.
    pub(super) fn admits_all_of(&self, binding: &str, values: &Values<'_>) -> bool {
        let words = split(binding);
        let any = words.iter().position(|word| *word == "#");
        let Some(any) = any else {
            let covers = |(glob, word): (&Glob, &&str)| match *word {
                "*" => glob.is_any(),
                word => glob.matches(word, values),
            };
            let fits = if self.open { words.len() >= self.globs.len() } else { words.len() == self.globs.len() };
            return fits && self.globs.iter().zip(&words).all(covers);
        };
        // From the first `#` on, any word may stand at any place; before it each word has its place.
        let at_least = words.iter().filter(|word| **word != "#").count();
        let covers = |(place, glob): (usize, &Glob)| match words.get(place) {
            Some(&"*") => glob.is_any(),
            Some(word) if place < any => glob.matches(word, values),
            _ => glob.is_any(),
        };
        self.open && at_least >= self.globs.len() && self.globs.iter().enumerate().all(covers)
    }

    /// Whether it admits some routing key that the binding lets through. Only for patterns without placeholders.
    pub(super) fn admits_some_of(&self, binding: &str) -> bool {
        let words = split(binding);
        let places = self.globs.len();
        // meets[place]: whether the rest of the binding, from the word being looked at, can meet the pattern from this place.
        let mut meets: Vec<bool> = (0..=places).map(|place| place == places).collect();
        for word in words.iter().rev() {
            let later = meets.clone();
            for place in (0..=places).rev() {
                let stays = self.open && place == places;
                meets[place] = match *word {
                    "#" => later[place] || (place < places && meets[place + 1]),
                    _ if stays => later[place],
                    _ if place == places => false,
                    "*" => later[place + 1],
                    word => later[place + 1] && self.globs[place].matches(word, &Values::NONE),
                };
            }
        }
        // Exchanges of other types take the wildcards as they are.
        meets[0] || self.admits(binding, &Values::NONE)
    }

    /// Whether everything that `other` admits is surely admitted too.
    pub(super) fn covers(&self, other: &Words) -> bool {
        let fits = match (self.open, other.open) {
            (true, _) => other.globs.len() >= self.globs.len(),
            (false, false) => other.globs.len() == self.globs.len(),
            (false, true) => false,
        };
        fits && self.globs.iter().zip(&other.globs).all(|(glob, other)| glob.covers(other))
    }
}

/// RabbitMQ reads an empty key as no word at all.
fn split(text: &str) -> Vec<&str> {
    if text.is_empty() { Vec::new() } else { text.split('.').collect() }
}

/// Splits a pattern at a character, but not within a placeholder: names of claims may have dots and slashes.
pub(super) fn outside_braces(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            _ if c == separator && !inside => {
                parts.push(&text[start..at]);
                start = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Routing keys of up to five words out of three.
    fn keys() -> Vec<String> {
        let mut keys = vec![String::new(), "a".to_owned(), "b".to_owned()];
        let mut longest = vec!["a".to_owned(), "b".to_owned(), String::new()];
        for _ in 1..5 {
            longest = longest.iter().flat_map(|key| ["a", "b", ""].map(|word| format!("{key}.{word}"))).collect();
            keys.extend_from_slice(&longest);
        }
        keys
    }

    /// RabbitMQ's own rule, written out.
    fn lets_through(binding: &[&str], key: &[&str]) -> bool {
        match binding.split_first() {
            None => key.is_empty(),
            Some((&"#", rest)) => (0..=key.len()).any(|taken| lets_through(rest, &key[taken..])),
            Some((word, rest)) => {
                key.split_first().is_some_and(|(first, key)| (*word == "*" || word == first) && lets_through(rest, key))
            }
        }
    }

    #[test]
    fn all_and_some_mean_what_they_say_for_every_small_binding() {
        let patterns =
            ["a", "*", "**", "a.*", "a.**", "*.b", "*.**", "a.b", "a.b.**", "*.*", "a*.b", "*.*.**", "a.*.b"];
        // Without empty words: one alone is no key, so that "some" is more than exact there.
        let words = ["a", "b", "*", "#"];
        let mut bindings: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        for first in words {
            for second in words {
                bindings.push(format!("{first}.{second}"));
                bindings.extend(words.iter().map(|third| format!("{first}.{second}.{third}")));
            }
        }
        let keys = keys();
        let (mut all, mut some) = (0, 0);
        for (pattern, binding) in patterns.iter().flat_map(|pattern| bindings.iter().map(move |b| (pattern, b))) {
            let words = Words::parse(pattern).unwrap();
            let through = keys.iter().filter(|key| lets_through(&split(binding), &split(key)));
            let through: Vec<bool> = through.map(|key| words.admits(key, &Values::NONE)).collect();
            // Exact: these keys tell every pattern above from every binding above.
            let admits_all = words.admits_all_of(binding, &Values::NONE);
            assert_eq!(admits_all, through.iter().all(|admitted| *admitted), "{pattern} all of {binding}");
            let admits_some = words.admits_some_of(binding);
            let literally = words.admits(binding, &Values::NONE);
            assert_eq!(admits_some, literally || through.contains(&true), "{pattern} some of {binding}");
            assert!(!admits_all || literally, "{pattern} does not admit {binding} itself");
            all += usize::from(admits_all);
            some += usize::from(admits_some);
        }
        assert!(all > 100 && some > all, "{all} {some}");
    }
}
