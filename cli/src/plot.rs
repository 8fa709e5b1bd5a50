//! The picture of `bench`: how long so many of the replies took at the most.

use std::path::Path;

use hdrhistogram::Histogram;
use plotters::prelude::*;

use crate::failure::{Code, Failure};

/// In pixels.
const SIZE: (u32, u32) = (960, 540);
/// How many points the line has.
const POINTS: u32 = 500;

/// Draws the percentiles of times in nanoseconds. On the horizontal axis each step is a nine more: 90 %, 99 %, 99.9 %.
pub(crate) fn percentiles(path: &Path, times: &Histogram<u64>) -> Result<(), Failure> {
    let mut picture = String::new();
    let drawn = draw(&mut picture, times);
    drawn.map_err(|error| Failure::new(Code::Failed, format!("cannot draw {}: {error}", path.display())))?;
    std::fs::write(path, picture).map_err(|error| Failure::file("write", path, &error))
}

fn draw(picture: &mut String, times: &Histogram<u64>) -> Result<(), Box<dyn std::error::Error>> {
    // As far as there is a time that the others are not above.
    let nines = (times.len().max(10) as f64).log10();
    let millis = |time: u64| time as f64 / 1e6;
    let area = SVGBackend::with_string(picture, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(format!("{} replies", times.len()), ("sans-serif", 20))
        .margin(20)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..nines, 0.0..millis(times.max()).max(0.001) * 1.05)?;
    chart
        .configure_mesh()
        .x_labels(nines.ceil() as usize + 1)
        .x_label_formatter(&|nines| format!("{}%", 100.0 - 10_f64.powf(2.0 - nines)))
        .x_desc("replies within this time")
        .y_desc("ms from when the message was due")
        .draw()?;
    let line = (0..=POINTS).map(|point| {
        let nines = nines * f64::from(point) / f64::from(POINTS);
        (nines, millis(times.value_at_quantile(1.0 - 10_f64.powf(-nines))))
    });
    chart.draw_series(LineSeries::new(line, &BLUE))?;
    area.present()?;
    Ok(())
}
