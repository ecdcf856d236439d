//! Checked values of a node's properties.
#![forbid(unsafe_code)]

use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property, ToCellInt};
use heapless::Vec;

use super::{Device, Region, TreeError};

/// A property that says what cannot be.
pub(super) fn odd<T>(node: &'static str, property: &'static str) -> Result<T, TreeError> {
    Err(TreeError::Odd { node, property })
}

/// A node counts unless its status says otherwise; `status` values other than okay/ok mean hands off.
pub(super) fn enabled(node: &FdtNode<'_>) -> bool {
    matches!(string(node, "status"), None | Some("okay" | "ok"))
}

/// A property that is text.
pub(super) fn string<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.value_as::<&'a str>().ok()
}

/// A property that is one number.
pub(super) fn cell(node: &FdtNode<'_>, name: &str) -> Option<u32> {
    node.property(name)?.value_as::<u32>().ok()
}

/// A range that is not empty, does not wrap, and can be mapped.
pub(super) fn region(base: u64, size: u64) -> Option<Region> {
    // The highest address the firmware can map is below 2^48.
    (size > 0 && base.checked_add(size).is_some_and(|end| end <= 1 << 48))
        .then_some(Region { base, size })
}

/// All `reg` entries; none of them may be empty, wrap, or lie beyond what can be mapped.
pub(super) fn regions<const N: usize>(
    node: &FdtNode<'_>,
    name: &'static str,
) -> Result<Vec<Region, N>, TreeError> {
    let mut out = Vec::new();
    let Ok(Some(entries)) = node.reg() else {
        return odd(name, "reg");
    };
    for entry in entries {
        let (Ok(base), Ok(size)) = (entry.address::<u64>(), entry.size::<u64>()) else {
            return odd(name, "reg");
        };
        let Some(region) = region(base, size) else {
            return odd(name, "reg");
        };
        if out.push(region).is_err() {
            return Err(TreeError::TooMany("'reg' entries"));
        }
    }
    Ok(out)
}

/// The first `reg` entry.
pub(super) fn one_region(node: &FdtNode<'_>, name: &'static str) -> Result<Region, TreeError> {
    match regions::<4>(node, name)?.first() {
        Some(region) => Ok(*region),
        None => odd(name, "reg"),
    }
}

/// Interrupt `index` of a node in the GIC's three-cell form: the id that the GIC counts, and whether it is an edge.
pub(super) fn interrupt(
    node: &FdtNode<'_>,
    index: usize,
    name: &'static str,
) -> Result<(u32, bool), TreeError> {
    let entry = node
        .property("interrupts")
        .and_then(|property| property.as_prop_encoded_array([1, 1, 1]).ok())
        .and_then(|mut entries| entries.nth(index));
    let Some([kind, number, flags]) = entry else {
        return odd(name, "interrupts");
    };
    // Bits 0 and 1 are edges, 2 and 3 levels.
    let edge = flags.to_int::<u32>().is_ok_and(|flags| flags & 3 != 0);
    match (kind.to_int::<u32>(), number.to_int::<u32>()) {
        // Shared interrupts start at 32 and end before the special ids at 1020; private ones are 16 to 31.
        (Ok(0), Ok(number)) if number < 988 => Ok((number + 32, edge)),
        (Ok(1), Ok(number)) if number < 16 => Ok((number + 16, edge)),
        _ => odd(name, "interrupts"),
    }
}

/// The first register block and the first interrupt.
pub(super) fn device(node: &FdtNode<'_>, name: &'static str) -> Result<Device, TreeError> {
    let (interrupt, edge) = interrupt(node, 0, name)?;
    Ok(Device {
        region: one_region(node, name)?,
        interrupt,
        edge,
    })
}
