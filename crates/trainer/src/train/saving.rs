//! The files of a run that training writes along the way, beside its records: the state to go on from, the best weights, the plot.

use std::fs;

use tinygpt_model::{Adapter, files::atomic};

use super::{LOSS_PNG, LOSS_SVG, Trainer};
use crate::{Result, chart, engine::EngineState, metrics::MetricsFile};

impl Trainer<'_> {
    /// Saves the state of the loop first: it says whether the weights are the best, and [`Trainer::catch_up`] writes them
    /// as such where a crash or a full disk kept this from doing it.
    pub(super) fn save(&self) -> Result<()> {
        let exported = self.engine.state_dict()?;
        self.run.last().save(self.engine.config(), &exported, &self.state)?;
        if self.state.is_best() {
            self.write_best(&exported)?;
        }
        self.run.delete_replaced()
    }

    /// Writes the weights as the best ones, and the adapter where one is trained.
    fn write_best(&self, state: &EngineState) -> Result<()> {
        let config = self.engine.config();
        let Some(adapter) = &state.adapter else {
            return Ok(self.run.model().write_weights(config, &state.params)?);
        };
        self.run.model().write_weights(config, &self.engine.params()?)?;
        let base = self.state.init_from.as_ref().map_or("", |origin| &origin.path);
        Ok(adapter.write(self.run.adapter(), config, base)?)
    }

    /// Writes what belongs to the evaluation that was saved last, where a crash or a full disk came in between: the
    /// weights, if they are the best, and the plot.
    pub(super) fn catch_up(&self, metrics: &MetricsFile) -> Result<()> {
        if self.state.is_best() {
            let (config, params, state) = (self.engine.config(), self.engine.params()?, self.engine.state_dict()?);
            let written = self.run.model().read_weights(config).is_ok_and(|written| written == params);
            let is_written = |adapter: &Adapter| {
                Adapter::open(self.run.adapter(), config).is_ok_and(|written| written.values == adapter.values)
            };
            if !written || !state.adapter.as_ref().is_none_or(is_written) {
                self.write_best(&state)?;
            }
        }
        if self.state.last_evaluation == Some(self.state.step) { self.write_plot(metrics) } else { Ok(()) }
    }

    /// Writes the plot of the losses.
    pub(super) fn write_plot(&self, metrics: &MetricsFile) -> Result<()> {
        let Some(figure) = chart::loss_curve(&self.config.name, metrics.rows()) else { return Ok(()) };
        self.write_changed(LOSS_SVG, figure.svg()?.as_bytes())
    }

    /// The same as pixels, which take longer to draw than an evaluation of a small model: at the end alone.
    pub(super) fn write_pixels(&self, metrics: &MetricsFile) -> Result<()> {
        let Some(figure) = chart::loss_curve(&self.config.name, metrics.rows()) else { return Ok(()) };
        self.write_changed(LOSS_PNG, &figure.png()?)
    }

    /// Writes a file of the run, unless it is there as it should be.
    fn write_changed(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.run.path().join(name);
        if fs::read(&path).ok().as_deref() != Some(bytes) {
            atomic::write(&path, bytes)?;
        }
        Ok(())
    }
}
