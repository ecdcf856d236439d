//! The event core's rules on the host, a file a family and a test a rule, named by it. `table.tsv` says which test
//! shows which rule and `check` that each of them did run.
#[path = "../common/mod.rs"]
mod common;

mod acq;
mod adp;
mod bad_use;
mod batch;
mod bh;
mod clocks;
mod co;
mod co_locks;
mod co_rules;
mod cs;
mod en;
mod en_poll;
mod iot;
mod lck;
mod limits;
mod nfy;
mod own;
mod poll;
mod seed;
mod tmr;
mod tmr_armed;
mod tpl;
mod wait;
mod watchdog;
