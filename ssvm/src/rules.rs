//! What an operator allows images to be.

use std::num::NonZeroU64;

use crate::image;
use crate::settings::Settings;
use crate::stream::UnpackLimits;

/// The part of the settings that decides about downloads.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Bytes per second of one download.
    pub rate_per_job: Option<NonZeroU64>,
    /// Attempts in a row that bring nothing new.
    pub resume_attempts: u32,
    /// Bytes that stay free on a store.
    pub reserve_bytes: u64,
    /// What images may be.
    pub images: image::Limits,
    max_ratio: u64,
}

impl Rules {
    /// Of these settings.
    pub fn new(settings: &Settings) -> Self {
        Self {
            rate_per_job: settings.rate_per_job,
            resume_attempts: settings.resume_attempts,
            reserve_bytes: settings.reserve_bytes,
            images: image::Limits {
                max_virtual_size: settings.max_virtual_size,
                allow_encrypted_qcow2: settings.allow_encrypted_qcow2,
                allow_luks: settings.allow_luks,
                allow_extended_l2: settings.allow_extended_l2,
            },
            max_ratio: settings.max_ratio,
        }
    }

    /// For what is unpacked from a download.
    pub fn unpack_limits(&self, max_bytes: u64) -> UnpackLimits {
        UnpackLimits {
            max_bytes,
            max_ratio: self.max_ratio,
        }
    }
}
