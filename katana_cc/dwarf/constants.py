"""Numbers of the DWARF debugging format, versions 4 and 5, and the GNU extensions that gcc and clang emit.

Source: DWARF Debugging Information Format Version 5, chapter 7 (tables 7.2 to 7.29); version 4 for what 5 renamed.
Numbers of call-frame instructions are with their reader.
"""

from __future__ import annotations

from typing import Final

# Unit types (7.2).
DW_UT_compile: Final = 0x01
DW_UT_type: Final = 0x02
DW_UT_partial: Final = 0x03
DW_UT_skeleton: Final = 0x04
DW_UT_split_compile: Final = 0x05
DW_UT_split_type: Final = 0x06

# Tags (7.3).
DW_TAG_array_type: Final = 0x01
DW_TAG_class_type: Final = 0x02
DW_TAG_enumeration_type: Final = 0x04
DW_TAG_formal_parameter: Final = 0x05
DW_TAG_lexical_block: Final = 0x0B
DW_TAG_imported_declaration: Final = 0x08
DW_TAG_label: Final = 0x0A
DW_TAG_member: Final = 0x0D
DW_TAG_pointer_type: Final = 0x0F
DW_TAG_reference_type: Final = 0x10
DW_TAG_compile_unit: Final = 0x11
DW_TAG_structure_type: Final = 0x13
DW_TAG_subroutine_type: Final = 0x15
DW_TAG_typedef: Final = 0x16
DW_TAG_union_type: Final = 0x17
DW_TAG_unspecified_parameters: Final = 0x18
DW_TAG_inheritance: Final = 0x1C
DW_TAG_inlined_subroutine: Final = 0x1D
DW_TAG_ptr_to_member_type: Final = 0x1F
DW_TAG_subrange_type: Final = 0x21
DW_TAG_template_type_parameter: Final = 0x2F
DW_TAG_template_value_parameter: Final = 0x30
DW_TAG_base_type: Final = 0x24
DW_TAG_const_type: Final = 0x26
DW_TAG_enumerator: Final = 0x28
DW_TAG_subprogram: Final = 0x2E
DW_TAG_variable: Final = 0x34
DW_TAG_volatile_type: Final = 0x35
DW_TAG_restrict_type: Final = 0x37
DW_TAG_namespace: Final = 0x39
DW_TAG_imported_module: Final = 0x3A
DW_TAG_unspecified_type: Final = 0x3B
DW_TAG_partial_unit: Final = 0x3C
DW_TAG_type_unit: Final = 0x41
DW_TAG_rvalue_reference_type: Final = 0x42
DW_TAG_atomic_type: Final = 0x47
DW_TAG_call_site: Final = 0x48
DW_TAG_call_site_parameter: Final = 0x49
DW_TAG_skeleton_unit: Final = 0x4A
DW_TAG_immutable_type: Final = 0x4B
DW_TAG_GNU_call_site: Final = 0x4109
DW_TAG_GNU_call_site_parameter: Final = 0x410A

# Attributes (7.5.4).
DW_AT_sibling: Final = 0x01
DW_AT_location: Final = 0x02
DW_AT_name: Final = 0x03
DW_AT_byte_size: Final = 0x0B
DW_AT_bit_offset: Final = 0x0C
DW_AT_bit_size: Final = 0x0D
DW_AT_stmt_list: Final = 0x10
DW_AT_low_pc: Final = 0x11
DW_AT_high_pc: Final = 0x12
DW_AT_language: Final = 0x13
DW_AT_comp_dir: Final = 0x1B
DW_AT_const_value: Final = 0x1C
DW_AT_containing_type: Final = 0x1D
DW_AT_default_value: Final = 0x1E
DW_AT_inline: Final = 0x20
DW_AT_lower_bound: Final = 0x22
DW_AT_producer: Final = 0x25
DW_AT_prototyped: Final = 0x27
DW_AT_bit_stride: Final = 0x2E
DW_AT_upper_bound: Final = 0x2F
DW_AT_abstract_origin: Final = 0x31
DW_AT_accessibility: Final = 0x32
DW_AT_artificial: Final = 0x34
DW_AT_count: Final = 0x37
DW_AT_data_member_location: Final = 0x38
DW_AT_decl_column: Final = 0x39
DW_AT_decl_file: Final = 0x3A
DW_AT_decl_line: Final = 0x3B
DW_AT_declaration: Final = 0x3C
DW_AT_encoding: Final = 0x3E
DW_AT_external: Final = 0x3F
DW_AT_frame_base: Final = 0x40
DW_AT_specification: Final = 0x47
DW_AT_type: Final = 0x49
DW_AT_virtuality: Final = 0x4C
DW_AT_byte_stride: Final = 0x51
DW_AT_ranges: Final = 0x55
DW_AT_call_file: Final = 0x58
DW_AT_call_line: Final = 0x59
DW_AT_object_pointer: Final = 0x64
DW_AT_signature: Final = 0x69
DW_AT_data_bit_offset: Final = 0x6B
DW_AT_enum_class: Final = 0x6D
DW_AT_linkage_name: Final = 0x6E
DW_AT_str_offsets_base: Final = 0x72
DW_AT_addr_base: Final = 0x73
DW_AT_rnglists_base: Final = 0x74
DW_AT_dwo_name: Final = 0x76
DW_AT_reference: Final = 0x77
DW_AT_rvalue_reference: Final = 0x78
DW_AT_call_return_pc: Final = 0x7D
DW_AT_call_value: Final = 0x7E
DW_AT_call_origin: Final = 0x7F
DW_AT_call_pc: Final = 0x81
DW_AT_call_tail_call: Final = 0x82
DW_AT_noreturn: Final = 0x87
DW_AT_alignment: Final = 0x88
DW_AT_export_symbols: Final = 0x89
DW_AT_loclists_base: Final = 0x8C
DW_AT_MIPS_linkage_name: Final = 0x2007
DW_AT_GNU_vector: Final = 0x2107
DW_AT_GNU_call_site_value: Final = 0x2111
DW_AT_GNU_tail_call: Final = 0x2115
DW_AT_GNU_dwo_name: Final = 0x2130

# Forms (7.5.5, 7.5.6).
DW_FORM_addr: Final = 0x01
DW_FORM_block2: Final = 0x03
DW_FORM_block4: Final = 0x04
DW_FORM_data2: Final = 0x05
DW_FORM_data4: Final = 0x06
DW_FORM_data8: Final = 0x07
DW_FORM_string: Final = 0x08
DW_FORM_block: Final = 0x09
DW_FORM_block1: Final = 0x0A
DW_FORM_data1: Final = 0x0B
DW_FORM_flag: Final = 0x0C
DW_FORM_sdata: Final = 0x0D
DW_FORM_strp: Final = 0x0E
DW_FORM_udata: Final = 0x0F
DW_FORM_ref_addr: Final = 0x10
DW_FORM_ref1: Final = 0x11
DW_FORM_ref2: Final = 0x12
DW_FORM_ref4: Final = 0x13
DW_FORM_ref8: Final = 0x14
DW_FORM_ref_udata: Final = 0x15
DW_FORM_indirect: Final = 0x16
DW_FORM_sec_offset: Final = 0x17
DW_FORM_exprloc: Final = 0x18
DW_FORM_flag_present: Final = 0x19
DW_FORM_strx: Final = 0x1A
DW_FORM_addrx: Final = 0x1B
DW_FORM_ref_sup4: Final = 0x1C
DW_FORM_strp_sup: Final = 0x1D
DW_FORM_data16: Final = 0x1E
DW_FORM_line_strp: Final = 0x1F
DW_FORM_ref_sig8: Final = 0x20
DW_FORM_implicit_const: Final = 0x21
DW_FORM_loclistx: Final = 0x22
DW_FORM_rnglistx: Final = 0x23
DW_FORM_ref_sup8: Final = 0x24
DW_FORM_strx1: Final = 0x25
DW_FORM_strx2: Final = 0x26
DW_FORM_strx3: Final = 0x27
DW_FORM_strx4: Final = 0x28
DW_FORM_addrx1: Final = 0x29
DW_FORM_addrx2: Final = 0x2A
DW_FORM_addrx3: Final = 0x2B
DW_FORM_addrx4: Final = 0x2C

# Base type encodings (7.8).
DW_ATE_address: Final = 0x01
DW_ATE_boolean: Final = 0x02
DW_ATE_complex_float: Final = 0x03
DW_ATE_float: Final = 0x04
DW_ATE_signed: Final = 0x05
DW_ATE_signed_char: Final = 0x06
DW_ATE_unsigned: Final = 0x07
DW_ATE_unsigned_char: Final = 0x08
DW_ATE_UTF: Final = 0x10

# Location operations (7.7.1): those that place a variable in static storage.
DW_OP_addr: Final = 0x03
DW_OP_const4u: Final = 0x0C
DW_OP_const8u: Final = 0x0E
DW_OP_plus_uconst: Final = 0x23
DW_OP_piece: Final = 0x93
DW_OP_form_tls_address: Final = 0x9B
DW_OP_stack_value: Final = 0x9F
DW_OP_addrx: Final = 0xA1
DW_OP_constx: Final = 0xA2
DW_OP_GNU_push_tls_address: Final = 0xE0

# Range list entries (7.25).
DW_RLE_end_of_list: Final = 0x00
DW_RLE_base_addressx: Final = 0x01
DW_RLE_startx_endx: Final = 0x02
DW_RLE_startx_length: Final = 0x03
DW_RLE_offset_pair: Final = 0x04
DW_RLE_base_address: Final = 0x05
DW_RLE_start_end: Final = 0x06
DW_RLE_start_length: Final = 0x07

# Location list entries (7.29).
DW_LLE_end_of_list: Final = 0x00
DW_LLE_base_addressx: Final = 0x01
DW_LLE_startx_endx: Final = 0x02
DW_LLE_startx_length: Final = 0x03
DW_LLE_offset_pair: Final = 0x04
DW_LLE_default_location: Final = 0x05
DW_LLE_base_address: Final = 0x06
DW_LLE_start_end: Final = 0x07
DW_LLE_start_length: Final = 0x08
DW_LLE_GNU_view_pair: Final = 0x09

# Line number program (7.22).
DW_LNS_copy: Final = 0x01
DW_LNS_advance_pc: Final = 0x02
DW_LNS_advance_line: Final = 0x03
DW_LNS_set_file: Final = 0x04
DW_LNS_set_column: Final = 0x05
DW_LNS_negate_stmt: Final = 0x06
DW_LNS_set_basic_block: Final = 0x07
DW_LNS_const_add_pc: Final = 0x08
DW_LNS_fixed_advance_pc: Final = 0x09
DW_LNE_end_sequence: Final = 0x01
DW_LNE_set_address: Final = 0x02
DW_LNE_define_file: Final = 0x03
DW_LNE_set_discriminator: Final = 0x04
DW_LNCT_path: Final = 0x1
DW_LNCT_directory_index: Final = 0x2
