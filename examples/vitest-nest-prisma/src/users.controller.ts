import { Body, ConflictException, Controller, Inject, Post, UnauthorizedException } from '@nestjs/common';
import { PrismaService } from './prisma.service';

@Controller()
export class UsersController {
  constructor(@Inject(PrismaService) private readonly prisma: PrismaService) {}

  @Post('accounts')
  async register(@Body() { name, email }: { name: string; email: string }) {
    if (await this.prisma.user.findUnique({ where: { email } })) throw new ConflictException(`${email} has an account`);
    return this.prisma.user.create({ data: { name, email } });
  }

  @Post('sessions')
  async authenticate(@Body() { email }: { email: string }) {
    const user = await this.prisma.user.findUnique({ where: { email } });
    if (!user) throw new UnauthorizedException();
    return { userId: user.id };
  }
}
