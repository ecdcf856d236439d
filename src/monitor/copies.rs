//! `job mirror`, `job backup`: how they begin, from words.
#![forbid(unsafe_code)]

use super::kinds::{Options, Why, copy_error, node_called, why};
use crate::block::NodeId;
use crate::block::job::{self, Job, Start, StartError, backup, mirror};

type Begin = fn(&[Start<'_>]) -> Result<Job, StartError>;

/// `job mirror SOURCE TARGET …`; `None`: the keys are wrong.
pub(super) fn mirror(
    nodes: &[NodeId],
    common: &job::Options<'_>,
    options: &mut Options<'_>,
) -> Option<Result<Job, Why>> {
    begin(nodes, common, options, |starts| {
        mirror::start(starts, &launched, 0).map(|jobs| jobs[0])
    })
}

/// `job backup SOURCE TARGET …`; `None`: the keys are wrong.
pub(super) fn backup(
    nodes: &[NodeId],
    common: &job::Options<'_>,
    options: &mut Options<'_>,
) -> Option<Result<Job, Why>> {
    begin(nodes, common, options, |starts| {
        backup::start(starts, &launched, 0).map(|jobs| jobs[0])
    })
}

fn begin(
    nodes: &[NodeId],
    common: &job::Options<'_>,
    options: &mut Options<'_>,
    begin: Begin,
) -> Option<Result<Job, Why>> {
    let second = match options.take("and") {
        None => None,
        Some(pair) => {
            let (source, target) = pair.split_once(',')?;
            Some([node_called(source)?, node_called(target)?])
        }
    };
    let cluster = match options.take("cluster") {
        None => None,
        Some(word) => Some(super::format::parse_size(word)?),
    };
    let on_error = copy_error(options.take("on-copy-error"))?;
    if !options.is_used_up() {
        return None;
    }
    let start = |nodes: &[NodeId], options| Start {
        options,
        cluster,
        on_error,
        ..Start::new(nodes[0], nodes[1])
    };
    let first = start(nodes, job::Options { ..*common });
    let result = match second {
        None => begin(&[first]),
        Some(pair) => {
            // The second is called as its source is.
            let options = job::Options {
                id: None,
                default_id: "",
                ..*common
            };
            begin(&[first, start(&pair, options)])
        }
    };
    Some(result.map_err(|error| why(&error)))
}

/// Jobs run, or their filters could not come to their places.
fn launched(_: usize, result: Result<(), StartError>) {
    if let Err(error) = result {
        log::error!("a job was not started: {error}");
    }
}
