//! The ratios as bars.

use std::fmt::Write;

use super::compare::Groups;
use super::table::Lines;

const BAR_HEIGHT: f64 = 20.0;
const LABEL_WIDTH: f64 = 340.0;
const PLOT_WIDTH: f64 = 360.0;
/// Longer bars are cut; the number beside them is not.
const RATIO_MAX: f64 = 12.0;

/// An SVG picture: a bar for each line, as long as the relay is better than Web STOMP; the thin line is "as good as".
pub fn draw(lines: &Lines, groups: &Groups) -> String {
    let bars: Vec<(String, f64)> =
        lines.0.iter().filter_map(|row| Some((title(lines, row.line, row.title), row.ratio(groups)?))).collect();
    let height = BAR_HEIGHT * bars.len() as f64 + 30.0;
    let width = LABEL_WIDTH + PLOT_WIDTH + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"8\" y=\"16\" font-weight=\"bold\">Times better than RabbitMQ's Web STOMP, wss</text>\n"
    );
    let scale = PLOT_WIDTH / RATIO_MAX;
    for (index, (title, ratio)) in bars.iter().enumerate() {
        let y = 26.0 + BAR_HEIGHT * index as f64;
        let length = ratio.min(RATIO_MAX) * scale;
        let colour = if *ratio >= 1.0 { "#2a7" } else { "#c53" };
        let _ = writeln!(svg, "<text x=\"8\" y=\"{:.0}\">{title}</text>", y + 13.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.0}\" width=\"{length:.1}\" height=\"{:.0}\" fill=\"{colour}\"/>",
            BAR_HEIGHT - 5.0
        );
        let _ = writeln!(svg, "<text x=\"{:.0}\" y=\"{:.0}\">{ratio:.1}×</text>", LABEL_WIDTH + length + 5.0, y + 13.0);
    }
    let one = LABEL_WIDTH + scale;
    let _ =
        writeln!(svg, "<line x1=\"{one:.0}\" x2=\"{one:.0}\" y1=\"22\" y2=\"{height:.0}\" stroke=\"#333\"/>\n</svg>");
    svg
}

/// With the beginning of its line's title where it only continues that.
fn title(lines: &Lines, line: &str, title: &str) -> String {
    let first = lines.0.iter().find(|row| row.line == line).map_or("", |row| row.title);
    match title.strip_prefix('…') {
        None => title.to_owned(),
        Some(rest) => format!("{}:{rest}", first.split([',', ':']).next().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::read;
    use super::super::table::Lines;
    use super::draw;

    #[test]
    fn every_ratio_has_a_bar() {
        let report = |server: &str, per_s: f64| {
            format!(
                "{{\"label\":{{\"line\":\"pipe\",\"server\":\"{server}\"}},\"transport\":\"wss\",\
                 \"values\":{{\"per_s\":{per_s},\"server_cpu_us\":50}}}}\n"
            )
        };
        let runs = report("relay", 500.0) + &report("webstomp", 1000.0);
        let svg = draw(&Lines::default(), &read(&runs).unwrap());
        assert!(svg.contains(">0.5×<") && svg.contains(">1.0×<"), "{svg}");
        assert!(svg.contains(">queue pipe: server CPU, µs per message<"), "{svg}");
        assert_eq!(svg.matches("<rect x=").count(), 2, "{svg}");
    }
}
