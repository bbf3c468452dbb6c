//! Dates as the API has them.

use time::{Date, Month, OffsetDateTime, Time, UtcOffset};

/// `2026-11-20T12:00:00+0000`.
pub fn format(moment: OffsetDateTime) -> String {
    let utc = moment.to_offset(UtcOffset::UTC);
    let (year, month, day) = utc.to_calendar_date();
    let (hour, minute, second) = utc.to_hms();
    format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+0000",
        u8::from(month)
    )
}

/// `yyyy-MM-dd`, `yyyy-MM-dd HH:mm:ss`, or with `T` and an offset (`Z`, `+0000`, `+00:00`). Without an offset it is UTC.
pub fn parse(text: &str) -> Option<OffsetDateTime> {
    let text = text.trim();
    let (date, rest) = text.split_at_checked(10)?;
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    if year.len() != 4 || parts.next().is_some() {
        return None;
    }
    let month = Month::try_from(u8::try_from(digits(month)?).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::from(digits(year)?), month, u8::try_from(digits(day)?).ok()?).ok()?;
    let Some(rest) = rest.strip_prefix(['T', ' ']) else {
        return rest.is_empty().then(|| date.midnight().assume_utc());
    };
    let (time, offset) = rest.split_at_checked(8)?;
    let mut parts = time.split(':');
    let mut next = || u8::try_from(digits(parts.next()?)?).ok();
    let time = Time::from_hms(next()?, next()?, next()?).ok()?;
    // Milliseconds are read over.
    let offset = match offset.strip_prefix('.') {
        Some(fraction) => fraction.trim_start_matches(|c: char| c.is_ascii_digit()),
        None => offset,
    };
    Some(date.with_time(time).assume_offset(parse_offset(offset)?))
}

fn parse_offset(text: &str) -> Option<UtcOffset> {
    let (sign, digits_of) = match text {
        "" | "Z" => return Some(UtcOffset::UTC),
        _ => match text.split_at_checked(1)? {
            ("+", rest) => (1, rest),
            ("-", rest) => (-1, rest),
            _ => return None,
        },
    };
    let (hours, minutes) = digits_of.split_at_checked(2)?;
    let minutes = minutes.strip_prefix(':').unwrap_or(minutes);
    let small = |text: &str| {
        (text.len() == 2)
            .then(|| digits(text))
            .flatten()
            .and_then(|n| i8::try_from(n).ok())
    };
    UtcOffset::from_hms(sign * small(hours)?, sign * small(minutes)?, 0).ok()
}

fn digits(text: &str) -> Option<u16> {
    let is_number = !text.is_empty() && text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_forms_that_clients_send_are_read() {
        for text in [
            "2026-11-20T12:00:00+0000",
            "2026-11-20T12:00:00Z",
            "2026-11-20T12:00:00+00:00",
            "2026-11-20T14:00:00+0200",
            "2026-11-20T12:00:00.123Z",
            "2026-11-20 12:00:00",
        ] {
            assert_eq!(
                parse(text).map(format).as_deref(),
                Some("2026-11-20T12:00:00+0000"),
                "{text}"
            );
        }
        assert_eq!(
            parse("2026-11-20").map(format).as_deref(),
            Some("2026-11-20T00:00:00+0000")
        );
    }

    #[test]
    fn what_is_no_date_is_none() {
        for text in [
            "",
            "soon",
            "2026-13-01",
            "2026-02-30",
            "2026-11-20T25:00:00Z",
            "2026-11-20T12:00:00 0000",
            "2026-11-20T",
            "2026-11-2\u{e9}",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn noise_never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_written_is_read(seconds in 0_i64..4_000_000_000) {
            let moment = OffsetDateTime::from_unix_timestamp(seconds).unwrap();
            prop_assert_eq!(parse(&format(moment)), Some(moment));
        }
    }
}
