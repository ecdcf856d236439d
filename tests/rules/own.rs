//! Whose loop it is (OWN).

use crate::common::*;
use ironthread::arch::host::{self};

#[test]
#[should_panic(expected = "home core only")]
fn own_1_poll_from_a_foreign_core() {
    let (_machine, ctx) = stepped(2);
    let _one = host::enter_core(1);
    ctx.poll(false);
}
