//! Where a folder of a model may stand, `hf:NAME` may stand for a model of the hub.

use std::{borrow::Cow, path::Path};

use tinygpt_trainer::hub::{Hub, HubModel};

use crate::progress_bar::WorkProgress;

/// The folder of a model: the path itself; or for `hf:NAME` that of the cache, into which it is downloaded first.
pub fn folder(path: &Path) -> anyhow::Result<Cow<'_, Path>> {
    let Some(model) = path.to_str().and_then(HubModel::named) else { return Ok(path.into()) };
    let (model, hub) = (model?, Hub::from_env()?);
    let mut bar: Option<(String, WorkProgress)> = None;
    let folder = hub.folder(&model, |file, done, all| {
        if bar.as_ref().is_none_or(|(shown, _)| shown != file) {
            if bar.is_none() {
                notice!("downloading {model} from {} to {}", hub.shown_endpoint(), hub.cache.display());
            }
            bar = Some((file.to_owned(), WorkProgress::new(file.to_owned())));
        }
        if let Some((_, bar)) = &mut bar {
            bar.at(done as usize, all as usize);
        }
    })?;
    Ok(folder.into())
}
