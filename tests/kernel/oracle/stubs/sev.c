/* SPDX-License-Identifier: Apache-2.0 */
/* One PSP, and one open /dev/sev. */

#include "user.c"

int oracle_warnings;
static struct sev_vdata the_registers = { 0, 1, 2 };
static struct sev_device the_sev;
static struct psp_device the_psp;
static u8 command_buffer[PAGE_SIZE], backup_buffer[PAGE_SIZE];
static u32 written;

/* The status that the firmware answers to every command, and its data. */
static struct {
	u32 status;
	u8 platform[12], snp[32];
	u32 id_length, pdh_length, chain_length;
	u8 blob[4096];
} firmware;
static struct { u32 commands; u32 last; u8 payload[512]; } reached;

void *oracle_firmware(void) { return &firmware; }
void *oracle_reached(void) { return &reached; }

struct psp_device *psp_master = &the_psp;
struct mutex sev_cmd_mutex;

void *memdup_user(const void *from, unsigned long size)
{
	void *made = calloc(1, size);

	if (copy_from_user(made, from, size)) {
		free(made);
		return ERR_PTR(-EFAULT);
	}
	return made;
}

void oracle_iowrite32(u32 value)
{
	written = value; /* after the last write, this is the command */
}

/* Write a blob, if it fits into `*length` bytes. Set `*length` to the size of the blob. */
static u32 give(u64 address, u32 *length, const u8 *blob, u32 size)
{
	u32 room = *length;

	*length = size;
	if (room < size)
		return SEV_RET_INVALID_LEN;
	memcpy((void *)(uintptr_t)address, blob, size);
	return 0;
}

int sev_wait_cmd_ioc(struct sev_device *sev, unsigned int *reg, unsigned int timeout)
{
	u32 command = FIELD_GET(SEV_CMDRESP_CMD, written), status = firmware.status;
	void *buffer = sev->cmd_buf;

	reached.commands++;
	reached.last = command;
	memset(reached.payload, 0, sizeof(reached.payload));
	if (command == SEV_CMD_SNP_CONFIG)
		memcpy(reached.payload, buffer, sizeof(struct sev_user_data_snp_config));
	if (command == SEV_CMD_SNP_VLEK_LOAD)
		memcpy(reached.payload,
		       (void *)(uintptr_t)((struct sev_user_data_snp_vlek_load *)buffer)
			       ->vlek_wrapped_address,
		       sizeof(struct sev_user_data_snp_wrapped_vlek_hashstick));
	if (command == SEV_CMD_FACTORY_RESET || command == SEV_CMD_PEK_GEN ||
	    command == SEV_CMD_PEK_CSR || command == SEV_CMD_PDH_GEN ||
	    command == SEV_CMD_PEK_CERT_IMPORT)
		status = SEV_RET_INVALID_PLATFORM_STATE; /* the emulated firmware's only answer */
	switch (status ? -1 : (int)command) {
	case SEV_CMD_PLATFORM_STATUS:
		memcpy(buffer, firmware.platform, sizeof(firmware.platform));
		break;
	case SEV_CMD_SNP_PLATFORM_STATUS: {
		struct sev_data_snp_addr *at = buffer;

		memcpy((void *)(uintptr_t)at->address, firmware.snp, sizeof(firmware.snp));
		break;
	}
	case SEV_CMD_GET_ID: {
		struct sev_data_get_id *id = buffer;

		status = give(id->address, &id->len, firmware.blob, firmware.id_length);
		break;
	}
	case SEV_CMD_PDH_CERT_EXPORT: {
		struct sev_data_pdh_cert_export *out = buffer;

		if (out->pdh_cert_len < firmware.pdh_length ||
		    out->cert_chain_len < firmware.chain_length) {
			out->pdh_cert_len = firmware.pdh_length;
			out->cert_chain_len = firmware.chain_length;
			status = SEV_RET_INVALID_LEN;
			break;
		}
		give(out->pdh_cert_address, &out->pdh_cert_len, firmware.blob, firmware.pdh_length);
		give(out->cert_chain_address, &out->cert_chain_len, firmware.blob + 1,
		     firmware.chain_length);
		break;
	}
	}
	*reg = FIELD_PREP(SEV_CMDRESP_CMD, command) | FIELD_PREP(PSP_CMDRESP_STS, status);
	return 0;
}

void oracle_reset(bool initialized, u8 major, u8 minor, u8 state)
{
	memset(&the_sev, 0, sizeof(the_sev));
	memset(&reached, 0, sizeof(reached));
	memset(user_unmapped, 0, sizeof(user_unmapped));
	oracle_warnings = 0;
	the_sev.vdata = &the_registers;
	the_sev.cmd_buf = command_buffer;
	the_sev.cmd_buf_backup = backup_buffer;
	the_sev.snp_initialized = initialized;
	the_sev.api_major = major;
	the_sev.api_minor = minor;
	the_sev.sev_plat_status.state = state;
	the_psp.sev_data = &the_sev;
}

long oracle_ioctl(bool writable, u32 request, u64 argument)
{
	struct file file = { writable ? FMODE_WRITE : 0 };

	return sev_ioctl(&file, request, argument);
}
