//! Numbers with a unit and a range: durations, sizes, counts, factors.
//!
//! A duration or size without its unit is refused with the text to write instead, because a guessed unit is wrong by a
//! factor of a thousand.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::kind::{Kind, Shape};
use super::value::{Data, Value};

/// Durations, shortest unit first.
const TIME_UNITS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Sizes in bytes, smallest unit first.
const SIZE_UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

pub(super) const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

pub(super) const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

pub(super) const fn minutes(count: u64) -> Duration {
    Duration::from_secs(count * 60)
}

pub(super) const fn kib(count: usize) -> usize {
    count << 10
}

pub(super) const fn mib(count: usize) -> usize {
    count << 20
}

/// A duration in whole milliseconds, as in a configuration: the longest unit that leaves no rest.
pub(super) fn duration_text(duration: Duration) -> String {
    in_units(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &TIME_UNITS, "0s")
}

/// A size in bytes, as in a configuration: the largest unit that leaves no rest.
pub(super) fn size_text(bytes: usize) -> String {
    in_units(bytes as u64, &SIZE_UNITS, "0B")
}

fn in_units(amount: u64, units: &[(&str, u64)], zero: &str) -> String {
    let fitting = units.iter().rev().find(|(_, unit)| amount != 0 && amount.is_multiple_of(*unit));
    fitting.map_or(zero.to_owned(), |(name, unit)| format!("{}{name}", amount / unit))
}

pub(super) fn duration(range: RangeInclusive<Duration>) -> Kind<Duration> {
    let text = format!("duration, {} to {}", duration_text(*range.start()), duration_text(*range.end()));
    Kind::simple(text, Shape::Text, move |value| {
        let example = "a duration; write a whole number with ms, s, m or h, such as \"25s\"";
        let (amount, shown) = with_unit(value, &TIME_UNITS, "s", example)?;
        within(Duration::from_millis(amount), shown, &range, |limit| duration_text(*limit))
    })
}

/// A duration for a wire format that counts seconds.
pub(super) fn whole_seconds(range: RangeInclusive<Duration>) -> Kind<Duration> {
    let inner = duration(range);
    let text = format!("{}, whole seconds", inner.text);
    let parse = move |value: &Value| {
        let duration = (inner.parse)(value)?;
        if duration.subsec_nanos() == 0 {
            return Ok(duration);
        }
        let text = format!("{} is not in whole seconds", duration_text(duration));
        Err(vec![super::problem::Problem { place: value.place.clone(), text }])
    };
    Kind { parse: Box::new(parse), secrecy: inner.secrecy, shape: inner.shape, text }
}

pub(super) fn size(range: RangeInclusive<usize>) -> Kind<usize> {
    let text = format!("size, {} to {}", size_text(*range.start()), size_text(*range.end()));
    Kind::simple(text, Shape::Text, move |value| {
        let example = "a size; write a whole number with B, KiB, MiB or GiB, such as \"4MiB\"";
        let (bytes, shown) = with_unit(value, &SIZE_UNITS, "", example)?;
        within(usize::try_from(bytes).unwrap_or(usize::MAX), shown, &range, |limit| size_text(*limit))
    })
}

/// A whole number without unit; `T` must hold the range.
pub(super) fn count<T: TryFrom<i128>>(range: RangeInclusive<i128>) -> Kind<T> {
    let text = format!("integer, {} to {}", range.start(), range.end());
    Kind::simple(text, Shape::Bare, move |value| {
        let number: i128 = match &value.data {
            Data::Integer(number) => *number,
            Data::Raw(text) => text.trim().parse().map_err(|_| format!("expected an integer, found {text:?}"))?,
            _ => return Err(format!("expected an integer, found {}", value.type_name())),
        };
        let number = within(number, number.to_string(), &range, i128::to_string)?;
        T::try_from(number).map_err(|_| format!("{number} is out of range"))
    })
}

/// A decimal number without unit.
pub(super) fn factor(range: RangeInclusive<f64>) -> Kind<f64> {
    let text = format!("number, {:?} to {:?}", range.start(), range.end());
    Kind::simple(text, Shape::Bare, move |value| {
        let number: f64 = match &value.data {
            Data::Decimal(number) => *number,
            Data::Integer(number) => *number as f64,
            Data::Raw(text) => text.trim().parse().map_err(|_| format!("expected a number, found {text:?}"))?,
            _ => return Err(format!("expected a number, found {}", value.type_name())),
        };
        within(number, format!("{number:?}"), &range, |limit| format!("{limit:?}"))
    })
}

fn within<T: PartialOrd>(
    number: T,
    shown: String,
    range: &RangeInclusive<T>,
    show: impl Fn(&T) -> String,
) -> Result<T, String> {
    if range.contains(&number) {
        return Ok(number);
    }
    Err(format!("{shown} is out of range; allowed is {} to {}", show(range.start()), show(range.end())))
}

/// Reads `25s` into the smallest unit, with the text as it was. A bare number is answered with the same number in
/// `usual` (empty: the largest unit that fits).
fn with_unit(value: &Value, units: &[(&str, u64)], usual: &str, expected: &str) -> Result<(u64, String), String> {
    let no_unit = |shown: &str, number: u64| {
        let proposal = if usual.is_empty() { in_units(number, units, "0B") } else { format!("{number}{usual}") };
        Err(format!("{shown} has no unit; write \"{proposal}\""))
    };
    let text = match &value.data {
        Data::Raw(text) | Data::Text(text) => text.trim(),
        Data::Integer(number) => {
            let not_negative = u64::try_from(*number).map_err(|_| format!("{number} is not {expected}"))?;
            return no_unit(&number.to_string(), not_negative);
        }
        _ => return Err(format!("{} is not {expected}", value.type_name())),
    };
    let wrong = || format!("{text:?} is not {expected}");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    if unit.is_empty() {
        return no_unit(&format!("{text:?}"), number);
    }
    let (_, multiplier) = units.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(wrong)?;
    // Saturates: every range refuses it all the same.
    Ok((number.saturating_mul(*multiplier), format!("{text:?}")))
}
