//! The results as pictures: SVG files, drawn without fonts of the system.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::prelude::*;
use plotters::style::RGBColor;

use super::{Header, median, outcomes};
use crate::plan::{Scenario, Trial};
use crate::run::{GroupResult, Outcome};
use crate::{Error, Result, systems};

const SIZE: (u32, u32) = (960, 540);
/// Where the legend begins, at the right of everything else.
const LEGEND: i32 = 760;
/// Whether a system has a line, and of which color.
fn color(system: &str) -> Option<RGBColor> {
    systems::find(system)?.color
}

/// A part of the picture, in pixels.
type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// What a line shows: a system's points, in the order of x.
type Series = Vec<(String, Vec<(f64, f64)>)>;

struct Picture {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
}

pub(super) fn draw(directory: &Path, header: &Header, results: &[GroupResult]) -> Result<()> {
    let throughput = Picture {
        file: "throughput.svg",
        title: "Throughput by message size, one connection",
        x: "bytes in a message",
        y: "GB/s",
    };
    let by_size = series(results, Scenario::Throughput, "bytes/s", 1e-9, |trial| trial.size as f64);
    lines(directory, header, &throughput, &by_size)?;
    let connections = Picture {
        file: "connections.svg",
        title: "Throughput by connections into one listener, 110 bytes",
        x: "connections",
        y: "M messages/s",
    };
    let by_connections = series(results, Scenario::Connections, "messages/s", 1e-6, |trial| trial.connections as f64);
    lines(directory, header, &connections, &by_connections)?;
    let open_loop = Picture {
        file: "open-loop.svg",
        title: "99th percentile of latency at a fixed load, 110 bytes",
        x: "thousand messages/s offered",
        y: "p99, us",
    };
    let by_rate = series(results, Scenario::OpenLoop, "p99", 1.0, |trial| trial.rate as f64 / 1e3);
    lines(directory, header, &open_loop, &by_rate)?;
    bars(directory, header, results)
}

fn series(results: &[GroupResult], scenario: Scenario, figure: &str, scale: f64, x: impl Fn(&Trial) -> f64) -> Series {
    let mut by_system: BTreeMap<usize, Vec<(f64, f64)>> = BTreeMap::new();
    for outcome in outcomes(results, scenario).filter(|outcome| outcome.trial.neighbours == 0) {
        let drawn = systems::TABLE.iter().position(|entry| entry.color.is_some() && entry.name == outcome.trial.system);
        let Some(place) = drawn else { continue };
        if let Some(value) = median(outcome, figure) {
            by_system.entry(place).or_default().push((x(&outcome.trial), value * scale));
        }
    }
    by_system.into_iter().map(|(place, points)| (systems::TABLE[place].name.to_string(), points)).collect()
}

/// The least and the most of some values, with room around them on a logarithmic scale.
fn range(values: impl Iterator<Item = f64> + Clone) -> std::ops::Range<f64> {
    let (min, max) = (values.clone().fold(f64::MAX, f64::min), values.fold(f64::MIN_POSITIVE, f64::max));
    min / 1.3..max * 1.3
}

/// A line for each system, both axes logarithmic.
fn lines(directory: &Path, header: &Header, picture: &Picture, series: &Series) -> Result<()> {
    // One point is no line: a run of a single case has its table.
    if series.iter().all(|(_, points)| points.len() < 2) {
        return Ok(());
    }
    let path = directory.join(picture.file);
    let root = SVGBackend::new(&path, SIZE).into_drawing_area();
    let chart_area = frame(&root, header, picture.title, series.iter().map(|(name, _)| name.as_str()))?;
    let points = series.iter().flat_map(|(_, points)| points);
    let (xs, ys) = (range(points.clone().map(|point| point.0)), range(points.map(|point| point.1)));
    // Along x, what was measured is marked; along y, round numbers.
    let mut measured: Vec<f64> = series.iter().flat_map(|(_, points)| points).map(|point| point.0).collect();
    measured.sort_by(f64::total_cmp);
    measured.dedup();
    let steps = (-6..9).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)));
    let steps = steps.filter(|step| ys.contains(step)).collect();
    let mut chart = ChartBuilder::on(&chart_area)
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d(xs.log_scale().with_key_points(measured), ys.log_scale().with_key_points(steps))
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(picture.x)
        .y_desc(picture.y)
        .label_style(("sans-serif", 14))
        .x_label_formatter(&|value| plain(*value))
        .y_label_formatter(&|value| plain(*value))
        .draw()
        .map_err(plot_error)?;
    for (name, points) in series {
        let color = color(name).unwrap_or(BLACK);
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2))).map_err(plot_error)?;
        let dots = points.iter().map(|point| Circle::new(*point, 3, color.filled()));
        chart.draw_series(dots).map_err(plot_error)?;
    }
    root.present().map_err(plot_error)
}

/// The percentiles of ping-pong: a group of bars for each. The scale is linear: a bar twice as high is twice as much.
fn bars(directory: &Path, header: &Header, results: &[GroupResult]) -> Result<()> {
    let drawn = |outcome: &&Outcome| {
        outcome.error().is_none() && outcome.trial.neighbours == 0 && color(&outcome.trial.system).is_some()
    };
    let measured: Vec<_> = outcomes(results, Scenario::PingPong).filter(drawn).collect();
    if measured.is_empty() {
        return Ok(());
    }
    let percentiles = ["p50", "p99", "p99.9"];
    let path = directory.join("ping-pong.svg");
    let root = SVGBackend::new(&path, SIZE).into_drawing_area();
    let names = measured.iter().map(|outcome| outcome.trial.system.as_str());
    let chart_area = frame(&root, header, "Request and reply, 110 bytes, one connection", names)?;
    let value = |index: usize, percentile: &str| median(measured[index], percentile).unwrap_or(0.0);
    let all = (0..measured.len()).flat_map(|index| percentiles.map(|percentile| value(index, percentile)));
    let width = measured.len() as f64 + 1.0;
    let mut chart = ChartBuilder::on(&chart_area)
        .margin(10)
        .x_label_area_size(45)
        .y_label_area_size(65)
        .build_cartesian_2d(0.0..width * 3.0, 0.0..all.fold(1.0, f64::max) * 1.1)
        .map_err(plot_error)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .light_line_style(WHITE)
        .y_desc("us")
        .y_label_formatter(&|value| plain(*value))
        .label_style(("sans-serif", 14))
        .draw()
        .map_err(plot_error)?;
    for (group, percentile) in percentiles.into_iter().enumerate() {
        let left = group as f64 * width + 0.5;
        for (index, outcome) in measured.iter().enumerate() {
            let (from, height) = (left + index as f64, value(index, percentile));
            let color = color(&outcome.trial.system).unwrap_or(BLACK);
            let bar = Rectangle::new([(from + 0.05, 0.0), (from + 0.95, height)], color.filled());
            chart.draw_series([bar]).map_err(plot_error)?;
            caption(&root, super::digits(height), chart.backend_coord(&(from + 0.5, height)), -14)?;
        }
        let middle = left + measured.len() as f64 / 2.0;
        caption(&root, percentile.into(), chart.backend_coord(&(middle, 0.0)), 10)?;
    }
    root.present().map_err(plot_error)
}

/// Words centred above or below a point of the picture.
fn caption(root: &Area<'_>, words: String, (x, y): (i32, i32), down: i32) -> Result<()> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let style = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    root.draw(&Text::new(words, (x, y + down), style)).map_err(plot_error)
}

/// The title, the machine below it, and the legend. Returns where the chart goes.
fn frame<'a>(root: &Area<'a>, header: &Header, title: &str, names: impl Iterator<Item = &'a str>) -> Result<Area<'a>> {
    root.fill(&WHITE).map_err(plot_error)?;
    let machine = format!(
        "Loopback of one machine ({}, {} cores), {}, commit {}: compare within this picture only",
        header.machine, header.cores, header.date, header.commit
    );
    root.draw(&Text::new(title.to_string(), (20, 14), ("sans-serif", 20))).map_err(plot_error)?;
    root.draw(&Text::new(machine, (20, 42), ("sans-serif", 12))).map_err(plot_error)?;
    for (line, name) in names.enumerate() {
        let y = 90 + line as i32 * 24;
        let color = color(name).unwrap_or(BLACK);
        root.draw(&Rectangle::new([(LEGEND, y), (LEGEND + 18, y + 10)], color.filled())).map_err(plot_error)?;
        root.draw(&Text::new(name.to_string(), (LEGEND + 26, y - 2), ("sans-serif", 14))).map_err(plot_error)?;
    }
    let (_, below) = root.split_vertically(60);
    Ok(below.split_horizontally(LEGEND - 10).0)
}

/// A number without an exponent.
fn plain(value: f64) -> String {
    if value >= 1.0 { format!("{value:.0}") } else { format!("{}", (value * 1000.0).round() / 1000.0) }
}

/// The error of a drawing, without the borrows that it may have.
fn plot_error(error: impl std::fmt::Display) -> Error {
    error.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{header, outcome, results};
    use super::{RGBColor, color};

    #[test]
    fn a_line_for_each_system() {
        let directory = std::env::temp_dir().join(format!("buffstreams-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let results = results(vec![
            outcome("raw", 16, &[1e8], None),
            outcome("raw", 110, &[3e7], None),
            outcome("buffstreams", 16, &[5e7], None),
            outcome("buffstreams", 110, &[1e7], None),
        ]);
        super::draw(&directory, &header(), &results).unwrap();
        let drawn = std::fs::read_to_string(directory.join("throughput.svg")).unwrap();
        assert!(!directory.join("ping-pong.svg").exists());
        std::fs::remove_dir_all(&directory).unwrap();
        for system in ["raw", "buffstreams"] {
            let RGBColor(red, green, blue) = color(system).unwrap();
            let stroke = format!("stroke=\"#{red:02X}{green:02X}{blue:02X}\"");
            assert_eq!(drawn.matches(&stroke).count(), 1, "{system}");
        }
        assert!(drawn.contains("buffstreams") && drawn.contains("a machine"));
    }
}
