//! "Did you mean": the nearest of the known names.

/// Below this a suggestion confuses more than it helps; 0.75 still finds `cert` → `cert_file` and `web` → `websocket`.
const SIMILARITY_MIN: f64 = 0.75;

/// The known name that is most like `unknown`, if any is like it at all.
pub(super) fn nearest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(&unknown.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
