use super::*;

#[test]
fn a_moment_is_read_as_people_write_it() {
    let at = |millis| Ok(When::At(Timestamp(millis)));
    for (text, expected) in [
        ("2026-01-01", at(1_767_225_600_000)),
        ("2026-01-01T00:00", at(1_767_225_600_000)),
        ("2026-01-01T10:30:15Z", at(1_767_263_415_000)),
        ("2024-02-29", at(1_709_164_800_000)),
        ("1970-01-01", at(0)),
        ("1767225600000", at(1_767_225_600_000)),
        ("7d", Ok(When::Ago(604_800_000))),
        ("90s", Ok(When::Ago(90_000))),
    ] {
        assert_eq!(when(text), expected, "{text}");
    }
    for text in [
        "",
        "d",
        "yesterday",
        "2026-13-01",
        "2026-01-01T25:00",
        "2026-1",
        "-5",
        "1e3",
    ] {
        assert!(when(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_written_as_a_day_is_shown_as_that_day() {
    for text in [
        "1970-03-01",
        "1999-12-31",
        "2000-02-29",
        "2026-11-20",
        "2100-02-28",
        "9999-12-31",
    ] {
        let Ok(When::At(at)) = when(text) else {
            panic!("{text} is a day");
        };
        assert_eq!(render::moment(at), format!("{text} 00:00:00Z"));
    }
}
