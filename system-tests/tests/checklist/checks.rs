//! What is checked: the items by their numbers, and the rest.

/// One thing that is true or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Check {
    /// An item of the list, by its number.
    Item(u8),
    /// What `nmap` sees from each network.
    Ports,
    /// Boot arguments that make no sense, and better ones after them.
    BadLine,
}

/// Of the list: appliance.md §14.
pub(crate) const ITEMS: [&str; 41] = [
    "item_01_the_guest_agent_answers_a_ping_within_30_s_of_power_on",
    "item_02_the_host_writes_the_line_through_the_guest_agent_and_it_stays_private",
    "item_03_without_a_line_a_vm_waits_and_takes_it_after_three_minutes",
    "item_04_3922_opens_on_the_control_address_within_20_s_of_the_line_and_nowhere_else",
    "item_05_root_logs_in_with_the_key_of_the_line_and_in_no_other_way",
    "item_06_every_way_to_write_a_line_means_the_same",
    "item_07_guest_shutdown_and_the_power_button_end_qemu_within_60_s",
    "item_08_a_cold_start_with_another_control_address_answers_only_there",
    "item_09_a_reboot_without_a_line_answers_at_the_same_address_within_60_s",
    "item_10_the_root_file_system_grows_with_the_disk",
    "item_11_a_router_works_in_256_mib_with_one_processor_ide_and_e1000",
    "item_12_no_dhcp_no_internet_and_no_random_numbers_change_nothing",
    "item_13_the_control_address_answers_pings_from_the_moment_3922_is_open",
    "item_14_scp_stores_and_fetches_files_with_legacy_java_and_sftp_clients",
    "item_15_a_client_with_old_algorithms_logs_in",
    "item_16_fifty_logins_at_once_succeed",
    "item_17_exit_status_output_globs_and_quotes_are_those_of_a_shell",
    "item_18_patched_sh_finds_the_keystore_programs_at_once",
    "item_19_an_upload_is_taken_and_changes_none_of_our_files",
    "item_20_a_truncated_upload_changes_nothing_and_the_whole_one_is_taken_later",
    "item_21_the_version_answer_waits_for_the_boot_and_has_the_form_that_servers_want",
    "item_22_the_live_patch_command_answers_and_runs_nothing_that_was_uploaded",
    "item_23_ten_live_patches_do_not_disturb_the_agent",
    "item_24_an_imported_certificate_is_presented_to_the_server",
    "item_25_without_a_certificate_the_agent_tries_all_servers_for_ever",
    "item_26_the_unit_cloud_is_active_on_ssvm_and_cpvm_only",
    "item_27_routes_are_those_of_public_and_private_public_addresses",
    "item_28_the_console_port_is_that_of_the_line",
    "item_29_ssvm_check_says_error_and_warning_once_each_when_all_is_well",
    "item_30_the_storage_nic_has_its_address_and_mtu",
    "item_31_the_line_can_be_copied_before_a_stop",
    "item_32_a_router_has_its_addresses_route_ports_and_forwards",
    "item_33_router_commands_answer_in_the_forms_that_servers_parse",
    "item_34_router_configuration_is_refused_honestly_until_there_is_a_router",
    "item_35_nics_plugged_into_a_vpc_router_are_usable_and_keep_their_names",
    "item_36_dnsmasq_and_haproxy_run_where_they_should_with_their_pid_files",
    "item_37_a_read_only_file_system_is_noticed",
    "item_38_diagnostics_have_three_parts",
    "item_39_diagnostics_files_are_zipped_fetched_and_removed",
    "item_40_xen_and_vmware_lines_are_found_and_nics_named_by_mac",
    "item_41_a_plan_is_printed_without_rights_and_is_the_golden_one",
];

impl Check {
    /// All, in the order of their names.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (1..)
            .zip(ITEMS)
            .map(|(number, _)| Self::Item(number))
            .chain([Self::Ports, Self::BadLine])
    }

    /// As a test.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Item(number) => ITEMS[usize::from(number) - 1],
            Self::Ports => "ports_of_every_type_are_open_only_where_they_are_needed",
            Self::BadLine => "bad_boot_arguments_leave_a_vm_that_can_be_asked_and_better_ones_work",
        }
    }
}
