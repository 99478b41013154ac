//! Plots as SVG: lines over an axis, and dots over two. Small, plain, and the same for the same
//! figures.

use std::fmt::Write as _;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right (where the names stand) and bottom.
const MARGIN: (f64, f64, f64, f64) = (64.0, 40.0, 210.0, 48.0);
/// Colours that are told apart by most eyes.
const COLOURS: [&str; 12] = [
    "#000000", "#888888", "#d62728", "#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#ff7f0e",
    "#8c564b", "#e377c2", "#bcbd22", "#00429d",
];

/// An axis.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    /// What it counts, with its unit.
    pub name: &'static str,
    /// Its ends.
    pub ends: (f64, f64),
    /// Whether equal steps are equal ratios.
    pub ratios: bool,
}

/// Points of one kind.
#[derive(Debug, Clone)]
pub struct Series {
    /// What it is called.
    pub name: String,
    /// Its points.
    pub points: Vec<(f64, f64)>,
}

/// A plot.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What it shows.
    pub title: &'static str,
    /// To the right.
    pub across: Axis,
    /// Upwards.
    pub up: Axis,
    /// What is shown; each has the colour of its place.
    pub series: Vec<Series>,
    /// Whether points are joined.
    pub lines: bool,
}

impl Axis {
    /// Where a value stands, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let (from, to) = self.ends;
        let share = if self.ratios {
            (value.max(from) / from).ln() / (to / from).ln()
        } else {
            (value - from) / (to - from)
        };
        share.clamp(0.0, 1.0)
    }

    /// Round values between its ends.
    fn marks(&self) -> Vec<f64> {
        let (from, to) = self.ends;
        if self.ratios {
            let mut marks = Vec::new();
            let mut decade = 10_f64.powf(from.log10().floor());
            while decade <= to * 1.000_001 {
                marks.extend([1.0, 2.0, 5.0].map(|step| step * decade));
                decade *= 10.0;
            }
            marks.retain(|mark| (from * 0.999_999..=to * 1.000_001).contains(mark));
            return marks;
        }
        let rough = (to - from) / 6.0;
        let decade = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
        let step = steps.into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        let count = ((to - from) / step + 1e-6) as usize;
        let first = (from / step - 1e-6).ceil() * step;
        (0..=count).map(|n| first + n as f64 * step).collect()
    }
}

impl Plot {
    /// The plot as an SVG document.
    #[must_use]
    pub fn svg(&self) -> String {
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="#ffffff"/>
<text x="{:.0}" y="24" font-size="15">{}</text>
"##,
            MARGIN.0,
            escaped(self.title),
        );
        self.frame(&mut svg);
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            self.draw(&mut svg, series, colour);
        }
        self.names(&mut svg);
        svg.push_str("</svg>\n");
        svg
    }

    fn x(&self, value: f64) -> f64 {
        MARGIN.0 + self.across.share(value) * (WIDTH - MARGIN.0 - MARGIN.2)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - MARGIN.3 - self.up.share(value) * (HEIGHT - MARGIN.1 - MARGIN.3)
    }

    fn frame(&self, svg: &mut String) {
        let (left, right) = (MARGIN.0, WIDTH - MARGIN.2);
        let (top, bottom) = (MARGIN.1, HEIGHT - MARGIN.3);
        for mark in self.across.marks() {
            let x = self.x(mark);
            put(
                svg,
                &format!(
                    r##"<line x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}" stroke="#e4e4e4"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"##,
                    bottom + 16.0,
                    short(mark),
                ),
            );
        }
        for mark in self.up.marks() {
            let y = self.y(mark);
            put(
                svg,
                &format!(
                    r##"<line x1="{left:.1}" y1="{y:.1}" x2="{right:.1}" y2="{y:.1}" stroke="#e4e4e4"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"##,
                    left - 6.0,
                    y + 4.0,
                    short(mark),
                ),
            );
        }
        put(
            svg,
            &format!(
                r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text><text transform="translate(16 {:.1}) rotate(-90)" text-anchor="middle">{}</text>"#,
                f64::midpoint(left, right),
                HEIGHT - 10.0,
                escaped(self.across.name),
                f64::midpoint(top, bottom),
                escaped(self.up.name),
            ),
        );
    }

    fn draw(&self, svg: &mut String, series: &Series, colour: &str) {
        let points = series.points.iter().map(|(x, y)| (self.x(*x), self.y(*y)));
        if self.lines {
            let path: Vec<_> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            put(
                svg,
                &format!(
                    r#"<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{}"/>"#,
                    path.join(" ")
                ),
            );
            return;
        }
        for (x, y) in points {
            put(
                svg,
                &format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="5" fill="{colour}"/>"#),
            );
        }
    }

    fn names(&self, svg: &mut String) {
        let x = WIDTH - MARGIN.2 + 14.0;
        // Each has its colour in every plot, whoever is left out.
        let drawn = self.series.iter().zip(COLOURS.iter().cycle());
        let drawn = drawn.filter(|(series, _)| !series.points.is_empty());
        for ((series, colour), row) in drawn.zip(0..) {
            let y = MARGIN.1 + 12.0 + 18.0 * f64::from(row);
            put(
                svg,
                &format!(
                    r#"<rect x="{x:.1}" y="{:.1}" width="12" height="4" fill="{colour}"/><text x="{:.1}" y="{y:.1}">{}</text>"#,
                    y - 6.0,
                    x + 18.0,
                    escaped(&series.name),
                ),
            );
        }
    }
}

fn put(svg: &mut String, line: &str) {
    // Writing to a string does not fail.
    writeln!(svg, "{line}").ok();
}

fn short(value: f64) -> String {
    if value >= 10_000.0 {
        return format!("{:.0}k", value / 1000.0);
    }
    if value.fract().abs() < 1e-9 {
        return format!("{value:.0}");
    }
    let text = format!("{value:.3}");
    text.trim_end_matches('0').to_owned()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_holds_its_points_within_its_frame() {
        let axis = |name, ends, ratios| Axis { name, ends, ratios };
        let plot = Plot {
            title: "a < b",
            across: axis("milliseconds", (10.0, 1000.0), true),
            up: axis("share", (0.0, 1.0), false),
            series: vec![Series {
                name: "one".into(),
                points: vec![(10.0, 0.0), (100.0, 0.5), (9e9, 7.0)],
            }],
            lines: true,
        };
        let svg = plot.svg();
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"));
        // Half-way between 10 and 1000 in ratios; beyond the end is at the end.
        assert!(
            svg.contains(r#"points="64.0,372.0 357.0,206.0 650.0,40.0""#),
            "{svg}"
        );
        assert_eq!(
            plot.across.marks(),
            [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
        let up: Vec<_> = plot.up.marks().into_iter().map(short).collect();
        assert_eq!(up, ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }
}
