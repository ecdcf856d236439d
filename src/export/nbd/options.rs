//! Options that deal with exports: LIST, INFO, GO, EXPORT_NAME, and the meta contexts.
#![forbid(unsafe_code)]

use super::handshake::{CONTEXT_ID, Handshake, Phase};
use super::payload::{GoPayload, MetaPayload};
use super::wire::{self, info, option, reply};
use super::{BlockSizes, export_flags};
use crate::export::table::{self, Admission, Export, ExportId};

impl Handshake {
    pub(super) fn list_next(&mut self, last: Option<ExportId>) {
        match table::next_after(last) {
            None => self.answer(option::LIST, reply::ACK),
            Some(export) => {
                let length = (export.name.len() as u32).to_be_bytes();
                let parts = [
                    &length[..],
                    export.name.as_bytes(),
                    export.description.as_bytes(),
                ];
                self.reply(option::LIST, reply::SERVER, &parts);
                self.phase = Phase::List(Some(export.id));
            }
        }
    }

    pub(super) fn go(&mut self, option: u32) {
        let Some(payload) = GoPayload::parse(&self.bytes) else {
            return self.answer(option, reply::ERR_INVALID);
        };
        let Some(export) = table::find(payload.name) else {
            return self.answer(option, reply::ERR_UNKNOWN);
        };
        let sizes = BlockSizes::of(export.backend);
        // 512 is what a client that knows nothing keeps to; anything larger it has to have asked for.
        if sizes.minimum > 512 && !payload.wants(info::BLOCK_SIZE) {
            return self.answer(option, reply::ERR_BLOCK_SIZE_REQD);
        }
        let (name, description) = (payload.wants(info::NAME), payload.wants(info::DESCRIPTION));
        if name {
            self.reply(
                option,
                reply::INFO,
                &[&info::NAME.to_be_bytes(), export.name.as_bytes()],
            );
        }
        if description {
            self.reply(
                option,
                reply::INFO,
                &[
                    &info::DESCRIPTION.to_be_bytes(),
                    export.description.as_bytes(),
                ],
            );
        }
        let parts = [
            &info::BLOCK_SIZE.to_be_bytes()[..],
            &sizes.minimum.to_be_bytes(),
            &sizes.preferred.to_be_bytes(),
            &sizes.maximum.to_be_bytes(),
        ];
        self.reply(option, reply::INFO, &parts);
        self.choose(export);
        if option == option::GO {
            self.phase = Phase::Admission { option };
        } else {
            self.push_export(option);
            self.answer(option, reply::ACK);
        }
    }

    /// Settles the export and the size that this client is told, and keeps.
    pub(super) fn choose(&mut self, export: Export) {
        self.size = BlockSizes::of(export.backend).round(export.backend.size());
        self.chosen = Some(export);
    }

    /// The size and flags of the chosen export, as INFO and GO send them.
    pub(super) fn push_export(&mut self, option: u32) {
        let Some(export) = &self.chosen else { return };
        let size = self.size.to_be_bytes();
        let flags = export_flags(export, self.structured).to_be_bytes();
        self.reply(
            option,
            reply::INFO,
            &[&info::EXPORT.to_be_bytes(), &size, &flags],
        );
    }

    pub(super) fn meta(&mut self, option: u32) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.context = None;
            if !self.structured {
                return self.answer(option, reply::ERR_INVALID);
            }
        }
        let Some(payload) = MetaPayload::parse(&self.bytes) else {
            return self.answer(option, reply::ERR_INVALID);
        };
        let Some(export) = table::find(payload.name) else {
            return self.answer(option, reply::ERR_UNKNOWN);
        };
        let everything = !set && payload.count == 0;
        let matches = |query: &[u8]| query == wire::BASE_ALLOCATION || (!set && query == b"base:");
        if everything || payload.queries().any(matches) {
            let id = if set { CONTEXT_ID } else { 0 };
            self.reply(
                option,
                reply::META_CONTEXT,
                &[&id.to_be_bytes(), wire::BASE_ALLOCATION],
            );
            if set {
                self.context = Some(export.id);
            }
        }
        self.answer(option, reply::ACK);
    }

    /// Asks to enter the chosen export and, if admitted, says so to the client.
    pub(super) fn admit(&mut self, option: u32) -> Admission {
        let Some(export) = &self.chosen else {
            return Admission::Gone;
        };
        let admission = table::enter(export.id);
        if admission != Admission::Admitted {
            return admission;
        }
        self.counted = true;
        if option == option::GO {
            self.push_export(option);
            self.reply(option, reply::ACK, &[]);
        } else {
            let size = self.size;
            let flags = export_flags(export, self.structured);
            self.push(&size.to_be_bytes());
            self.push(&flags.to_be_bytes());
            if !self.no_zeroes {
                self.push(&[0; wire::EXPORT_NAME_ZEROES]);
            }
        }
        self.phase = Phase::Enter;
        Admission::Admitted
    }
}
