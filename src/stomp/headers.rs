//! The headers of one frame, in order. Does not refuse repeated names (the decoder drops them) and escapes nothing.

use std::fmt;

use super::escape::count_escaped;

/// Text to make room for with the first header; most frames need no more.
const TEXT_BYTES_FIRST: usize = 512;
/// Text of a peer from which on it gets much room.
const LARGE_TEXT_BYTES: usize = 8 * 1024;
/// Headers to make room for with the first header.
const SPANS_FIRST: usize = 12;
/// Behind a name and behind a value.
const SEPARATOR_BYTES: usize = 2;

/// Headers whose values never appear in Debug output; compared without regard to case.
const SECRET_NAMES: [&str; 2] = ["authorization", "passcode"];

/// Names and values as they mean, escapes resolved. Two allocations, however many headers.
#[derive(Clone, Default)]
pub struct Headers {
    spans: Vec<Span>,
    /// `name:value LF` of each header, so that where nothing needs an escape this is what is written.
    text: String,
    /// Whether a value begins behind its colon and some blanks.
    trimmed: bool,
}

/// Byte offsets into the text. A colon stands at the name's end, and blanks that were trimmed before the value.
#[derive(Clone, Copy)]
struct Span {
    name_start: usize,
    name_end: usize,
    value_start: usize,
    value_end: usize,
}

impl Headers {
    pub fn new() -> Headers {
        Headers::default()
    }

    /// Appends, also if the name is there already; [`Headers::get`] then still finds the first.
    pub fn push(&mut self, name: &str, value: &str) {
        self.make_room(name.len() + value.len() + SEPARATOR_BYTES);
        self.push_with(name, |text| text.push_str(value));
    }

    /// The same with a value that is put together in place: `append` may append to the text, and nothing else.
    pub fn push_with(&mut self, name: &str, append: impl FnOnce(&mut String)) {
        self.make_room(0);
        let name_start = self.text.len();
        self.text.push_str(name);
        let name_end = self.text.len();
        self.text.push(':');
        append(&mut self.text);
        self.spans.push(Span { name_start, name_end, value_start: name_end + 1, value_end: self.text.len() });
        self.text.push('\n');
    }

    /// Makes room for a header of this size, the text not to exceed `most` bytes. For the headers of a peer, which come one by one:
    /// what they outgrow is lost to the heap's holes, so a text that is large already grows to about its end at once. Room that
    /// is never written takes no memory.
    pub(super) fn make_room_within(&mut self, name: &str, value: &str, most: usize) {
        let bytes = name.len() + value.len() + SEPARATOR_BYTES;
        let length = self.text.len();
        if self.spans.is_empty() || self.text.capacity() - length >= bytes {
            return;
        }
        let wanted = if length < LARGE_TEXT_BYTES { length / 2 } else { 3 * length };
        self.text.reserve_exact(wanted.min(most.saturating_sub(length)).max(bytes));
    }

    fn make_room(&mut self, bytes: usize) {
        if self.spans.is_empty() {
            self.spans.reserve(SPANS_FIRST);
            self.text.reserve(TEXT_BYTES_FIRST.max(bytes));
        } else {
            self.text.reserve(bytes);
        }
    }

    /// All headers as they are written, if none is called `without` and no name or value needs an escape.
    pub(super) fn written(&self, without: &str) -> Option<&str> {
        let separators = SEPARATOR_BYTES * self.spans.len();
        let plain = !self.trimmed && count_escaped(self.text.as_bytes()) == separators && !self.contains(without);
        plain.then_some(&self.text)
    }

    /// What they hold on the heap.
    pub fn retained_bytes(&self) -> usize {
        self.text.capacity() + self.spans.capacity() * size_of::<Span>()
    }

    /// Bytes of all headers as they are written, escapes not counted.
    pub(super) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// The value of the first header of this name (STOMP 1.2, "Repeated Header Entries"). Names are case-sensitive.
    pub fn get(&self, name: &str) -> Option<&str> {
        // On bytes, and by length first: a peer may repeat a header a million times within one frame.
        let text = self.text.as_bytes();
        let same = |span: &&Span| {
            span.name_end - span.name_start == name.len() && &text[span.name_start..span.name_end] == name.as_bytes()
        };
        self.spans.iter().find(same).map(|span| &self.text[span.value_start..span.value_end])
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Name and value of each header, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.spans
            .iter()
            .map(|span| (&self.text[span.name_start..span.name_end], &self.text[span.value_start..span.value_end]))
    }

    pub fn len(&self) -> usize {
        self.spans.len()
    }

    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Strips leading spaces from every value. STOMP 1.0 clients may write `name: value`; names and what trails stay.
    pub fn trim_values_start(&mut self) {
        for span in &mut self.spans {
            let value = &self.text[span.value_start..span.value_end];
            let blanks = value.len() - value.trim_start_matches(' ').len();
            span.value_start += blanks;
            self.trimmed |= blanks > 0;
        }
    }
}

impl PartialEq for Headers {
    /// By content and order, whatever is stored behind a trimmed value.
    fn eq(&self, other: &Headers) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.iter().map(|(name, value)| (name, if is_secret(name) { "***" } else { value }));
        f.debug_map().entries(shown).finish()
    }
}

fn is_secret(name: &str) -> bool {
    SECRET_NAMES.iter().any(|secret| secret.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::Headers;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        let mut headers = Headers::new();
        for (name, value) in pairs {
            headers.push(name, value);
        }
        headers
    }

    #[test]
    fn headers_come_back_in_order() {
        let headers = headers(&[("b", "2"), ("", "empty name"), ("a", "")]);
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "2"), ("", "empty name"), ("a", "")]);
        assert_eq!(headers.len(), 3);
        assert!(!headers.is_empty());
        assert!(Headers::new().is_empty());
    }

    #[test]
    fn first_of_a_repeated_name_is_found() {
        let headers = headers(&[("a", "1"), ("a", "2")]);
        assert_eq!(headers.get("a"), Some("1"));
        assert_eq!(headers.get("A"), None);
        assert!(headers.contains("a") && !headers.contains("b"));
    }

    #[test]
    fn trimming_strips_leading_spaces_of_values_only() {
        let mut trimmed = headers(&[(" n ", "  v  "), ("tab", "\tx"), ("blank", "   "), ("", "")]);
        trimmed.trim_values_start();
        assert_eq!(trimmed, headers(&[(" n ", "v  "), ("tab", "\tx"), ("blank", ""), ("", "")]));
        assert_eq!(trimmed.get(" n "), Some("v  "));
    }

    #[test]
    fn equality_is_by_content_and_order() {
        assert_eq!(headers(&[("a", "bc")]), headers(&[("a", "bc")]));
        assert_ne!(headers(&[("a", "bc")]), headers(&[("ab", "c")]));
        assert_ne!(headers(&[("a", "1"), ("b", "2")]), headers(&[("b", "2"), ("a", "1")]));
        assert_ne!(headers(&[("a", "1")]), headers(&[("a", "1"), ("b", "2")]));
    }

    #[test]
    fn debug_output_hides_secrets() {
        let shown =
            format!("{:?}", headers(&[("login", "guest"), ("PassCode", "s3cret"), ("Authorization", "s3cret")]));
        assert_eq!(shown, r#"{"login": "guest", "PassCode": "***", "Authorization": "***"}"#);
    }
}
