use std::fs::File;

use protocol::transfer::ImageFormat;

use super::signature::{self, Signature};
use super::window::{Fields, Window};
use super::{Limits, Refusal, conflict, not_usable, qcow2, vhd, vmdk};

/// Judges an image of the registered `format` of which only the first `length` bytes are in `file` yet. It refuses, in
/// the words of [`super::judge`], what no further byte would put right, so that nobody has to wait for them.
pub fn judge_start(file: &File, length: u64, format: ImageFormat, limits: &Limits) -> Result<(), Refusal> {
    let window = Window::of_start(file, length);
    let found = signature::all(&window)?;
    let mismatch = || match signature::describe(&window, &found) {
        Ok(found) => Err(Refusal::Mismatch(found)),
        Err(error) => Err(error.into()),
    };
    let Some(wanted) = Signature::of(format) else {
        let is_foreign = |signature: &Signature| !(*signature == Signature::Luks && limits.allow_luks);
        return match format {
            ImageFormat::Raw if found.iter().any(is_foreign) || signature::is_web_page(&window)? => mismatch(),
            ImageFormat::Raw => Ok(()),
            _ => Err(not_usable(format)),
        };
    };
    if !found.contains(&wanted) {
        let may_follow = match wanted {
            Signature::Vhd => found.is_empty() && !signature::is_web_page(&window)?,
            // A disc image without its mark is known by its partitions, which end where the image does.
            Signature::Iso => window.read(510, 2)?.le_u16(0) == 0xaa55,
            _ => false,
        };
        return if may_follow { Ok(()) } else { mismatch() };
    }
    if let Some(refusal) = conflict(wanted, wanted.name(), &found) {
        return Err(refusal);
    }
    match format {
        ImageFormat::Qcow2 => qcow2::judge(&window, limits, &mut Vec::new()).map(drop),
        ImageFormat::Vhd => vhd::judge(&window).map(drop),
        ImageFormat::Vmdk => vmdk::judge(&window).map(drop),
        _ => Ok(()),
    }
}
