//! Machines with a mirror: two or three disks, of which two are legs of an array whose exports the clients use.
//!
//! What differs from other machines: legs fail, for good or for a while, and each life starts with another choice of them, with
//! `force` or without. Then everything that clients were promised has to be there, or the array must not be.

mod actions;
mod array;
mod checks;
mod jobs;
mod life;
mod members;
pub mod past;
mod sections;
mod start;
mod steps;

pub use life::live;

use crate::device::PAGE;
use crate::oracle::SECTOR;

/// Most disks.
pub const LEGS: usize = 3;
/// Lives of a seed: all but the last end with a power cut.
pub const LIVES: u32 = 4;
/// The disk that copies go to, when it is no leg.
const SPARE: usize = 2;
const MIB: usize = 1 << 20;
/// Largest array, in MiB.
const LARGEST: usize = 4;
/// Pages of the largest leg: superblocks at both ends, and up to a MiB that is of no use.
pub const LEG_PAGES: usize = (LARGEST + 3) * MIB / PAGE;
/// First sector of the array's data on a leg.
const DATA: usize = MIB / SECTOR;
/// Sectors of the smallest region.
const STRIDE: u64 = (MIB / SECTOR) as u64;
