//! Days and moments of the Gregorian calendar (UTC), as people write them. Pure.

use farthing_protocol::clock::Timestamp;

/// A day: year, month and day of the month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// The year.
    pub year: u64,
    /// The month, 1 to 12.
    pub month: u64,
    /// The day of the month, from 1.
    pub day: u64,
}

impl Date {
    /// The day that is so many days after the epoch.
    #[must_use]
    pub const fn of(days: u64) -> Self {
        // Days since 1 March of the year 0, in eras of 400 years (Hinnant's civil_from_days).
        let days = days + 719_468;
        let (era, day) = (days / 146_097, days % 146_097);
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (365 * year + year / 4 - year / 100);
        let shifted = (5 * day + 2) / 153;
        let month = if shifted < 10 {
            shifted + 3
        } else {
            shifted - 9
        };
        let past = if month <= 2 { 1 } else { 0 };
        Self {
            year: year + era * 400 + past,
            month,
            day: day - (153 * shifted + 2) / 5 + 1,
        }
    }

    /// Reads `2026-11-20`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<u64> = text
            .split('-')
            .map(|part| part.parse().ok())
            .collect::<Option<_>>()?;
        let [year @ 1970..=9999, month @ 1..=12, day @ 1..=31] = *parts.as_slice() else {
            return None;
        };
        let date = Self { year, month, day };
        // There is no 31st of April.
        (Self::of(date.days()) == date).then_some(date)
    }

    /// Days since the epoch; years end with February here.
    #[must_use]
    pub const fn days(self) -> u64 {
        let Self { year, month, day } = self;
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let leap = year / 4 - year / 100 + year / 400;
        year * 365 + leap + (month * 153 + 2) / 5 + day - 719_469
    }

    /// `2026-11-20`.
    #[must_use]
    pub fn show(self) -> String {
        let Self { year, month, day } = self;
        format!("{year:04}-{month:02}-{day:02}")
    }
}

/// The time of day: `18:26:41Z`.
fn time_of_day(time: Timestamp) -> String {
    let seconds = time.seconds() % 86_400;
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{hour:02}:{minute:02}:{second:02}Z")
}

/// A moment as people write it: `2026-07-30 18:26:41Z`.
#[must_use]
pub fn moment(time: Timestamp) -> String {
    format!("{} {}", Date::of(time.day()).show(), time_of_day(time))
}

/// The same as programs write it: `2026-07-30T18:26:41Z`.
#[must_use]
pub fn stamp(time: Timestamp) -> String {
    format!("{}T{}", Date::of(time.day()).show(), time_of_day(time))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_moment_reads_as_on_the_calendar() {
        for (millis, text) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400_000, "2000-02-29 00:00:00Z"),
            (1_753_900_000_999, "2025-07-30 18:26:40Z"),
            (4_102_444_799_000, "2099-12-31 23:59:59Z"),
        ] {
            assert_eq!(moment(Timestamp(millis)), text);
            assert_eq!(stamp(Timestamp(millis)), text.replace(' ', "T"));
        }
    }

    #[test]
    fn only_a_day_is_read_as_one() {
        for wrong in [
            "",
            "2026-11",
            "2026-13-01",
            "2026-04-31",
            "2026-11-00",
            "x",
            "2026-11-20-1",
        ] {
            assert_eq!(Date::parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_day_written_and_read_is_the_same(days in 0_u64..2_000_000) {
            let date = Date::of(days);
            prop_assert_eq!(date.days(), days);
            prop_assert_eq!(Date::parse(&date.show()), Some(date));
        }
    }
}
